"""What a daemon of ours says of itself: its series, read from `/metrics`."""

import asyncio
import re

from prometheus_client.parser import text_string_to_metric_families

PATIENCE_S = 10.0

Series = dict[str, float]
"""Values by name and labels, as they are written."""


async def page(port: int, path: str) -> str:
    """Return the body of what is answered to a GET.

    Raises:
        OSError: nobody listens there.
        TimeoutError: there is no answer.
    """
    async with asyncio.timeout(PATIENCE_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head.lower())
        body = await reader.readexactly(int(length[1]) if length else 0)
        writer.close()
    return body.decode()


async def series(port: int) -> Series:
    """Return all series of a daemon."""
    found: Series = {}
    for family in text_string_to_metric_families(await page(port, "/metrics")):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sample.labels.items())
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def lag_quantile_s(before: Series, after: Series, share: float) -> float | None:
    """Return a bound on how late the loop was in that share of the looks between two scrapes.

    It is the upper edge of the histogram's bucket; `None` without a look.
    """
    pattern = re.compile(r'\w+_event_loop_lag_seconds_bucket\{.*?le="([^"]+)"')
    edges = [(float(m[1]), name) for name in after if (m := pattern.match(name)) is not None]
    counts = [(edge, after[name] - before.get(name, 0.0)) for edge, name in sorted(edges)]
    if not counts or not counts[-1][1]:
        return None
    return next(edge for edge, count in counts if count >= share * counts[-1][1])
