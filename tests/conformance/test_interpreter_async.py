"""E2B's unmodified asynchronous Python SDK runs code in our sandboxes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from e2b import NotFoundException, TimeoutException
from e2b_code_interpreter import AsyncSandbox


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def code(sdk_env: dict[str, str]) -> AsyncIterator[AsyncSandbox]:
    """One sandbox for this file."""
    sandbox = await AsyncSandbox.create(timeout=600)
    yield sandbox
    await sandbox.kill()


async def test_code_runs_with_callbacks(code: AsyncSandbox) -> None:
    """Output, results and errors are told while the code runs, to plain and to async functions."""
    heard: list[str] = []

    async def on_stdout(message: object) -> None:
        heard.append(f"out {message}")

    execution = await code.run_code(
        "import sys\nprint('a')\nprint('b', file=sys.stderr)\ndisplay(1)\n1/0",
        on_stdout=on_stdout,
        on_stderr=lambda message: heard.append(f"err {message}"),
        on_result=lambda result: heard.append(f"result {result.text}"),
        on_error=lambda error: heard.append(f"error {error.name}"),
    )
    assert heard == ["out a\n", "err b\n", "result 1", "error ZeroDivisionError"]
    assert execution.error is not None
    assert execution.execution_count == 1


async def test_contexts_run_side_by_side(code: AsyncSandbox) -> None:
    """Five kernels, each with its own variable."""
    contexts = await asyncio.gather(*(code.create_code_context() for _ in range(5)))
    await asyncio.gather(*(code.run_code(f"x = {i}", context=each) for i, each in enumerate(contexts)))
    executions = await asyncio.gather(*(code.run_code("x", context=each) for each in contexts))
    assert [each.text for each in executions] == ["0", "1", "2", "3", "4"]
    assert len(await code.list_code_contexts()) >= 5
    await asyncio.gather(*(code.remove_code_context(each) for each in contexts))
    with pytest.raises(NotFoundException):
        await code.run_code("x", context=contexts[0])


async def test_a_timeout_leaves_a_kernel_that_works(code: AsyncSandbox) -> None:
    """With its variables."""
    await code.run_code("y = 5")
    with pytest.raises(TimeoutException):
        await code.run_code("import signal\nsignal.pause()", timeout=1)
    assert (await code.run_code("y", timeout=60)).text == "5"
