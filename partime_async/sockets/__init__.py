"""Frames to and from devices over sockets; it needs the extra ``sockets``."""
