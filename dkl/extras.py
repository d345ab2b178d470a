"""Which extra of this package brings a module that is not installed; the base talks to a service elsewhere."""

_BRINGS = {
    "service": frozenset({
        "alembic", "celery", "fastapi", "filelock", "h11", "itsdangerous", "jinja2", "kombu", "limits",
        "markdown_it", "markupsafe", "PIL", "prometheus_client", "psutil", "psycopg", "redis", "sqlalchemy",
        "standardwebhooks", "starlette", "structlog", "uvicorn",
    }),
    "worker": frozenset({"matplotlib", "pyautoattack", "pynvml", "sklearn", "timm", "torch", "torchvision"}),
    "s3": frozenset({"boto3", "botocore"}),
    "corruptions": frozenset({"imagecorruptions"}),
}  # fmt: skip
"""Of each extra the modules that we import; what service and worker share counts for service."""


def what_to_install(error: ModuleNotFoundError) -> str | None:
    """The sentence for whoever lacks an extra; None where the module is of none, and the error is no user's."""
    module = (error.name or "").partition(".")[0]
    for extra, modules in _BRINGS.items():
        if module in modules:
            return f"this needs {module}, which is not installed here: pip install 'dkl-bench[{extra}]'"
    return None
