"""The page behind a link: agreements to read and accept, then files; without script."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from data_registry.governance.share_desk import Offered

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem;
  color: #1c2430; background: #fff; }
pre { white-space: pre-wrap; background: #f3f5f8; padding: 1rem; border-radius: 6px; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; padding: .35rem .5rem; border-bottom: 1px solid #d9dee6; }
td:last-child, th:last-child { text-align: right; font-variant-numeric: tabular-nums; }
button { font: inherit; padding: .5rem 1rem; border-radius: 6px; border: 1px solid #1f5fa8;
  background: #1f5fa8; color: #fff; cursor: pointer; }
"""


def page(offers: Sequence[Offered], files: Sequence[dict[str, Any]] | None, query: str) -> str:
    """HTML.

    Args:
        offers: Agreements of the link.
        files: With ``name``, ``bytes``, ``url``; None before all agreements are accepted.
        query: The link, for the form.
    """
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><title>Shared data</title>'
        f"<style>{_STYLE}</style></head><body><h1>Shared data</h1>"
    ]
    for offer in offers:
        parts.append(
            f"<h2>Agreement of {escape(offer.source)}, version {escape(offer.version)}</h2>"
            f"<pre>{escape(offer.text)}</pre>"
        )
        if offer.standing == "accepted":
            parts.append("<p>You have accepted it.</p>")
            continue
        ended = " Your acceptance has ended." if offer.standing == "ended" else ""
        lasts = f" It holds for {offer.days} days." if offer.days else ""
        parts.append(
            f"<p>Files are handed over once you accept.{lasts}{ended}</p>"
            f'<form method="post" action="/share/agreements?{escape(query)}">'
            f'<input type="hidden" name="source" value="{escape(offer.source)}">'
            f'<input type="hidden" name="sha256" value="{escape(offer.sha256)}">'
            "<button>I have read it and accept</button></form>"
        )
    if files is not None:
        rows = "".join(
            f'<tr><td><a href="{escape(file["url"])}">{escape(file["name"])}</a></td>'
            f"<td>{file['bytes']:,}</td></tr>"
            for file in files
        )
        parts.append(
            f"<h2>{len(files)} files</h2><p>A download that broke off goes on with "
            "<code>curl -C - -O</code>.</p>"
            f"<table><tr><th>file</th><th>bytes</th></tr>{rows}</table>"
        )
    return "".join(parts) + "</body></html>\n"
