"""Put a network into an aiohttp application that exists: its own routes stay, and clients stream under /live/.

The application brings its page, its login, its server; `make_app` adds what streams need: WebRTC signalling for
browsers, WebSockets for programs, limits, health and metrics. Here a program visits: it sends JSON, gets results.

Install:  pip install 'partime-async[serve]'
Run:      python examples/embed_aiohttp.py
Expect:   (... stands for figures of your machine)

    GET / says: the shop is open
    4 values went in, 3 came out: [...]
    GET /live/healthz says: ready, 1 client
"""

import asyncio

import aiohttp
import torch
from aiohttp import web

import partime_async as pa
from partime_async.models import mlp
from partime_async.serve import Access, ModelService, make_app


async def shop(request: web.Request) -> web.Response:
    """Answer as the application always did."""
    return web.Response(text="the shop is open")


def application() -> web.Application:
    """Return the application, with a network under /live/."""
    app = web.Application()
    app.router.add_get("/", shop)
    example = torch.zeros(1, 4)
    network = mlp(layers=4, width=32, in_features=4, out_features=3)
    service = ModelService(pa.Pipeline(network, example, stages=2), example)
    # Only this machine is served. For others: Access(token, hosts=frozenset({"shop.example"})).
    app.add_subapp("/live/", make_app({"scores": service}, access=Access.local(), page=None))
    return app


async def main() -> None:
    """Serve, and be a client."""
    runner = web.AppRunner(application())
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    async with aiohttp.ClientSession(url) as session:
        async with session.get("/") as response:
            print("GET / says:", await response.text())
        async with session.ws_connect("/live/api/stream?service=scores") as stream:
            await stream.receive_json()  # hello
            await stream.send_json([1.0, 2.0, 3.0, 4.0])
            result = await stream.receive_json()
            print(f"4 values went in, {len(result['values'])} came out: {result['values']}")
            async with session.get("/live/healthz") as response:
                health = await response.json()
                print(f"GET /live/healthz says: {health['status']}, {health['clients']} client")
    await runner.cleanup()


asyncio.run(main())
