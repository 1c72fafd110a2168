"""The page's scripts and styles from memory: the same bytes as Gradio's files, and no other file."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="gradio is not installed")

from gradio.route_utils import BUILD_PATH_LIB  # noqa: E402
from starlette.applications import Starlette  # noqa: E402
from starlette.testclient import TestClient  # noqa: E402

from serve.assets import assets  # noqa: E402


@pytest.fixture
def client() -> TestClient:
    return TestClient(Starlette(routes=[assets()]))


@pytest.mark.parametrize("kind", ["js", "css", "woff2"])
def test_a_file_comes_as_it_is_twice(client: TestClient, kind: str) -> None:
    file = min(Path(BUILD_PATH_LIB).glob(f"*.{kind}"))
    for asked in ("br, gzip", "br, gzip", "identity"):
        answer = client.get(f"/assets/{file.name}", headers={"accept-encoding": asked})
        assert answer.status_code == 200 and answer.content == file.read_bytes()
        assert answer.headers.get("content-encoding") == ("br" if "br" in asked and kind != "woff2" else None)
        assert "immutable" in answer.headers["cache-control"]


@pytest.mark.parametrize("name", ["nothing.js", "..%2Findex.html", "..%2f..%2f..%2froutes.py", "%00"])
def test_no_other_file_does(client: TestClient, name: str) -> None:
    answer = client.get(f"/assets/{name}")
    assert answer.status_code == 404 and str(BUILD_PATH_LIB) not in answer.text
