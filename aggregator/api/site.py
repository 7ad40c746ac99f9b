"""The dashboard's files at `/`; they hold nothing of the fleet, so that nobody needs a token to load them."""

from fastapi import APIRouter, Request, Response

from aggregator.dashboard.site import PAGE, POLICY, File, load

HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
LASTING = "public, max-age=31536000, immutable"  # its name has its hash
ASKED = "no-cache"  # kept, and asked for with its ETag each time
ASSETS = "/assets/"


def is_file(path: str) -> bool:
    """Whether this is the address of a file of the dashboard."""
    return path == "/" or path.startswith(ASSETS)


def routes() -> APIRouter:
    """`/` and `/assets/…`."""
    router = APIRouter(include_in_schema=False)
    files = load()

    @router.api_route("/", methods=["GET", "HEAD"])
    async def page(request: Request) -> Response:
        return _answer(request, files.get(PAGE))

    @router.api_route("/assets/{name}", methods=["GET", "HEAD"])
    async def asset(name: str, request: Request) -> Response:
        return _answer(request, files.get(f"assets/{name}"))

    return router


def _answer(request: Request, file: File | None) -> Response:
    if file is None:
        return Response("no such file\n", 404, media_type="text/plain")
    headers = {
        "ETag": file.etag,
        "Cache-Control": LASTING if file.lasting else ASKED,
        "Vary": "Accept-Encoding",
    }
    if request.headers.get("if-none-match") == file.etag:
        return Response(status_code=304, headers=headers)
    if "gzip" in request.headers.get("accept-encoding", ""):
        headers["Content-Encoding"] = "gzip"
        return Response(file.zipped, headers=headers, media_type=file.media_type)
    return Response(file.data, headers=headers, media_type=file.media_type)
