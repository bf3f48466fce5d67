"""In the Python kernel, as an IPython extension: tables as data, figures as charts, bounds on what is shown.

Nothing is imported before the code that runs imports it: a kernel starts in a fraction of the time pandas takes.
"""

from __future__ import annotations

import math
import os
import sys
from typing import Any

from . import limits

_set: list[dict[str, str | None]] = []  # what was there before each set_environment


def set_environment(values: dict[str, str], *, keep: bool = False) -> None:
    """Environment variables, for the run that follows or (`keep`) for good."""
    if not keep:
        _set.append({name: os.environ.get(name) for name in values})
    os.environ.update(values)


def restore_environment() -> None:
    """What was there before the last set_environment."""
    for name, value in (_set.pop() if _set else {}).items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "isoformat"):
        text = value.isoformat()
        return None if text == "NaT" else text
    return str(value)


def table_data(table: Any) -> dict[str, list[Any]] | None:
    """A data frame's columns as lists of JSON values; None when it is too large to go along."""
    rows, columns = table.shape
    if rows * columns > limits.DATA_CELLS_MAX:
        return None
    return {str(name): [_plain(value) for value in table.iloc[:, i].tolist()] for i, name in enumerate(table.columns)}


def chart_data(figure: Any) -> dict[str, Any] | None:
    """What E2B's own extractor finds in a figure."""
    from e2b_charts import chart_figure_to_chart

    chart = chart_figure_to_chart(figure)
    return chart.model_dump(mode="json") if chart is not None else None


def _is_a(value: Any, module: str, name: str) -> bool:
    kind = getattr(sys.modules.get(module), name, None)
    return isinstance(kind, type) and isinstance(value, kind)


def _formatters(display: Any) -> None:
    from IPython.core.formatters import BaseFormatter
    from traitlets import ObjectName, Unicode

    class Data(BaseFormatter):  # type: ignore[misc]
        format_type = Unicode("e2b/data")
        print_method = ObjectName("_repr_e2b_data_")
        _return_type = (dict, str)

        def __call__(self, value: Any) -> Any:
            if _is_a(value, "pandas", "DataFrame"):
                return _quietly(table_data, value)
            return super().__call__(value)

    class Chart(BaseFormatter):  # type: ignore[misc]
        format_type = Unicode("e2b/chart")
        print_method = ObjectName("_repr_e2b_chart_")
        _return_type = (dict, str)

        def __call__(self, value: Any) -> Any:
            if _is_a(value, "matplotlib.figure", "Figure"):
                return _quietly(chart_data, value)
            return super().__call__(value)

    for formatter in (Data, Chart):
        made = formatter(parent=display)
        display.formatters[made.format_type] = made


def _quietly(extract: Any, value: Any) -> Any:
    """A figure that the extractor does not understand is still a picture."""
    try:
        return extract(value)
    except Exception:
        return None


def _bounded(display: Any) -> None:
    """Representations that nobody could read are cut (text) or left out, and say so."""
    format_all = display.format

    def bounded(*args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        shown, metadata = format_all(*args, **kwargs)
        most = limits.RESULT_CHARACTERS_MAX
        for kind, value in list(shown.items()):
            if not isinstance(value, str) or len(value) <= most:
                continue
            if kind == "text/plain":
                shown[kind] = f"{value[:most]}... ({len(value) - most} characters more)"
            else:
                del shown[kind]
                print(f"a result's {kind} of {len(value)} bytes is left out: more than {most}", file=sys.stderr)
        return shown, metadata

    display.format = bounded


def _lossless(shell: Any) -> None:
    """What is published waits when its reader is slow; ZeroMQ would drop it. (XPUB_NODROP since ZeroMQ 4.1.)"""
    import zmq

    thread = shell.kernel.iopub_thread
    thread.socket.setsockopt(zmq.XPUB_NODROP, 1)


def load_ipython_extension(shell: Any) -> None:
    """Called by IPython when the kernel starts."""
    _lossless(shell)
    _formatters(shell.display_formatter)
    _bounded(shell.display_formatter)
