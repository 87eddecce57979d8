"""One model for many live clients, and the page that shows it; it needs the extra ``serve``."""
