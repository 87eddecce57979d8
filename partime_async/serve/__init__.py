"""Serve networks to browsers (WebRTC) and programs (WebSocket): clients and their limits, health, metrics."""

from partime_async.serve.access import Access, AccessDenied
from partime_async.serve.app import make_app
from partime_async.serve.client import Client, ClientKind, Left, Observed, Service
from partime_async.serve.heads import HeadService, HeadsFull
from partime_async.serve.limits import ClientLimits
from partime_async.serve.model import ModelService
from partime_async.serve.page import STATIC, VIEWER
from partime_async.serve.server import DEFAULT_PORT, Server
from partime_async.serve.websocket_client import SentFrame

__all__ = [
    "DEFAULT_PORT",
    "STATIC",
    "VIEWER",
    "Access",
    "AccessDenied",
    "Client",
    "ClientKind",
    "ClientLimits",
    "HeadService",
    "HeadsFull",
    "Left",
    "ModelService",
    "Observed",
    "SentFrame",
    "Server",
    "Service",
    "make_app",
]
