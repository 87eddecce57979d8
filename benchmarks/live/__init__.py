"""Live video over WebRTC: rate, latency and ends of connections, measured by a client in another process."""
