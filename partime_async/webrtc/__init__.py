"""Live video to and from browsers over WebRTC; it needs the extra ``webrtc``."""
