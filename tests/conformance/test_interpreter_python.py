"""E2B's unmodified Python code interpreter SDK runs code in our sandboxes."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from e2b import NotFoundException, SandboxException, TimeoutException
from e2b_code_interpreter import Context, Execution, Sandbox
from e2b_code_interpreter.charts import (
    BarChart,
    BoxAndWhiskerChart,
    LineChart,
    PieChart,
    ScatterChart,
    SuperChart,
)

from sandpty.supervisor import state
from tests.server_fixture import RunningServer
from tests.waiting import until_sync

TIMEOUT_S = 60.0


@pytest.fixture(scope="module")
def code(sdk_env: dict[str, str]) -> Iterator[Sandbox]:
    """One sandbox for this file; a context each keeps tests apart where it matters."""
    sandbox = Sandbox.create(timeout=600, envs={"GIVEN": "at create", "BOTH": "sandbox"})
    yield sandbox
    sandbox.kill()


@pytest.fixture
def context(code: Sandbox) -> Iterator[Context]:
    """A fresh Python kernel."""
    made = code.create_code_context()
    yield made
    code.remove_code_context(made)


def ran(sandbox: Sandbox, text: str, **options: Any) -> Execution:
    """The code's execution, which has no error."""
    execution = sandbox.run_code(text, timeout=TIMEOUT_S, **options)
    assert execution.error is None, execution.error
    return execution


def chart(sandbox: Sandbox, text: str) -> Any:
    """What is extracted from the figure that the code shows."""
    prefix = "import matplotlib.pyplot as plt\nplt.close('all')\n"
    execution = ran(sandbox, prefix + text + "\nplt.show()")
    assert execution.results[0].png
    return execution.results[0].chart


def test_variables_live_from_run_to_run(code: Sandbox) -> None:
    """The last expression's value is the execution's text."""
    assert ran(code, "x = 1").text is None
    assert ran(code, "x += 1; x").text == "2"
    assert ran(code, "'a string'").text == "a string"


def test_every_representation_of_a_result_arrives(code: Sandbox) -> None:
    """Text, html, markdown, svg, png, jpeg, pdf, latex, json and javascript; what has no field is extra."""
    shown = ran(
        code,
        """from IPython.display import display
display({'text/plain': 't', 'text/html': '<b>', 'text/markdown': '*m*', 'image/svg+xml': '<svg/>',
  'image/png': 'cG5n', 'image/jpeg': 'anBn', 'application/pdf': 'cGRm', 'text/latex': '$l$',
  'application/json': {'a': [1, None]}, 'application/javascript': '1+1', 'application/x-ours': 'extra'}, raw=True)
'main'""",
    ).results
    one, main = shown
    assert (one.text, one.html, one.markdown, one.svg) == ("t", "<b>", "*m*", "<svg/>")
    assert (one.png, one.jpeg, one.pdf, one.latex) == ("cG5n", "anBn", "cGRm", "$l$")
    assert (one.json, one.javascript, one.extra) == ({"a": [1, None]}, "1+1", {"application/x-ours": "extra"})
    assert (one.is_main_result, main.is_main_result, main.text) == (False, True, "main")


def test_a_table_comes_as_text_html_and_data(code: Sandbox) -> None:
    """Missing values are null, dates are ISO 8601."""
    made = "{'a': [1, None], 'b': ['x', 'y'], 'd': pd.to_datetime(['2024-01-02', None])}"
    result = ran(code, f"import pandas as pd\npd.DataFrame({made})").results[0]
    assert result.data == {"a": [1.0, None], "b": ["x", "y"], "d": ["2024-01-02T00:00:00", None]}
    assert result.html is not None
    assert "<table" in result.html


def test_a_line_chart_has_its_points_labels_and_scales(code: Sandbox) -> None:
    """With units from the labels and ticks."""
    found = chart(
        code,
        "plt.plot([1, 2, 3], [10, 100, 1000], label='grows')\nplt.title('T')\nplt.xlabel('Time (s)')\n"
        "plt.ylabel('Size (MB)')\nplt.yscale('log')",
    )
    assert isinstance(found, LineChart)
    assert (found.title, found.x_label, found.x_unit, found.y_unit) == ("T", "Time (s)", "s", "MB")
    assert found.y_scale.value == "log"
    assert [(each.label, each.points) for each in found.elements] == [("grows", [(1, 10), (2, 100), (3, 1000)])]


def test_scatter_bar_pie_and_box_charts_have_their_data(code: Sandbox) -> None:
    """As E2B's own extractor finds it."""
    scatter = chart(code, "plt.scatter([1, 2], [3, 4], label='dots')")
    assert isinstance(scatter, ScatterChart)
    assert scatter.elements[0].points == [(1, 3), (2, 4)]
    bars = chart(code, "plt.bar(['a', 'b'], [5, 7])")
    assert isinstance(bars, BarChart)
    assert [(bar.label, float(bar.value)) for bar in bars.elements] == [("a", 5), ("b", 7)]
    pie = chart(code, "plt.pie([1, 3], labels=['quarter', 'rest'])")
    assert isinstance(pie, PieChart)
    assert [(part.label, round(part.angle)) for part in pie.elements] == [("quarter", 90), ("rest", 270)]
    box = chart(code, "plt.boxplot([[1, 2, 3, 4, 5], [2, 4, 6, 8, 10]], patch_artist=True)")
    assert isinstance(box, BoxAndWhiskerChart)
    assert (box.elements[0].min, box.elements[0].median, box.elements[0].max) == (1, 3, 5)
    assert [each.third_quartile for each in box.elements] == [4, 8]


def test_several_axes_are_a_superchart(code: Sandbox) -> None:
    """With a chart for each."""
    both = chart(code, "f, (a, b) = plt.subplots(1, 2)\nf.suptitle('S')\na.plot([1, 2], [1, 2])\nb.bar(['a'], [1])")
    assert isinstance(both, SuperChart)
    assert both.title == "S"
    assert [type(each) for each in both.elements] == [LineChart, BarChart]


def test_an_error_has_its_name_value_and_traceback(code: Sandbox) -> None:
    """Without colours; what was printed before it is there, and the kernel goes on."""
    execution = code.run_code("kept = 1\nprint('before')\nkept / 0")
    assert execution.error is not None
    assert (execution.error.name, execution.error.value) == ("ZeroDivisionError", "division by zero")
    assert "kept / 0" in execution.error.traceback
    assert "\x1b" not in execution.error.traceback
    assert execution.logs.stdout == ["before\n"]
    assert ran(code, "kept").text == "1"
    broken = code.run_code("def")
    assert broken.error is not None
    assert broken.error.name == "SyntaxError"


def test_output_streams_in_the_order_it_is_written(code: Sandbox) -> None:
    """stdout and stderr, with timestamps that grow; each arrives while the code still runs."""
    heard: list[tuple[bool, str, int]] = []
    text = (
        "import sys, os\nos.mkfifo('/tmp/seen')\n"
        "for i in range(20):\n  print(i, end=',')\n  print(-i, end=',', file=sys.stderr)\n"
        "_ = open('/tmp/seen').read()\nprint('end')"
    )

    def listen(message: Any) -> None:
        heard.append((message.error, message.line, message.timestamp))
        if "-19" in message.line:
            code.commands.run("echo > /tmp/seen")

    execution = ran(code, text, on_stdout=listen, on_stderr=listen)
    assert "".join(line for _, line, _ in heard) == "".join(f"{i},{-i}," for i in range(20)) + "end\n"
    stamps = [stamp for _, _, stamp in heard]
    assert stamps == sorted(set(stamps))
    assert abs(stamps[0] / 1e9 - time.time()) < 600
    assert "".join(execution.logs.stderr) == "".join(f"{-i}," for i in range(20))


def test_characters_and_subprocess_output_arrive_whole(code: Sandbox) -> None:
    """Wide characters across pieces; what a child process writes is output too."""
    execution = ran(code, "print('é€😀' * 50_000)\nimport subprocess; _ = subprocess.run(['echo', 'from a child'])")
    assert "é€😀" * 50_000 in "".join(execution.logs.stdout)
    assert "from a child" in "".join(execution.logs.stdout)


def test_executions_are_counted_in_each_context(code: Sandbox, context: Context) -> None:
    """From 1; a failed one counts too; a restart begins anew."""
    assert ran(code, "1", context=context).execution_count == 1
    assert code.run_code("1/0", context=context).execution_count == 2
    assert ran(code, "1", context=context).execution_count == 3
    code.restart_code_context(context)
    assert ran(code, "1", context=context).execution_count == 1


def test_environment_variables_are_the_sandboxs_and_those_of_the_run(code: Sandbox) -> None:
    """Those of a run are gone after it, and what was there before is back; in every language."""
    read = "import os; [os.environ.get(n) for n in ('GIVEN', 'BOTH', 'RUN')]"
    assert ran(code, read).text == "['at create', 'sandbox', None]"
    assert ran(code, read, envs={"BOTH": "run", "RUN": "it's"}).text == "['at create', 'run', \"it's\"]"
    assert ran(code, read).text == "['at create', 'sandbox', None]"
    shell = 'echo "$GIVEN/$BOTH/$RUN"'
    assert ran(code, shell, language="bash", envs={"BOTH": "run", "RUN": "it's"}).logs.stdout == [
        "at create/run/it's\n"
    ]
    assert ran(code, shell, language="bash").logs.stdout == ["at create/sandbox/\n"]
    script = "[Deno.env.get('GIVEN'), Deno.env.get('BOTH'), Deno.env.get('RUN')].join('/')"
    assert ran(code, script, language="js", envs={"BOTH": "run", "RUN": 'a "b"'}).text == 'at create/run/a "b"'
    assert ran(code, script, language="js").text == "at create/sandbox/"


def test_contexts_are_separate_and_have_their_directories(code: Sandbox) -> None:
    """Created, listed, restarted and removed; one that is gone is not found."""
    code.commands.run("mkdir -p /tmp/work")
    one, two = code.create_code_context(cwd="/tmp/work"), code.create_code_context(cwd="/root", language="python")
    assert (one.language, one.cwd, two.cwd) == ("python", "/tmp/work", "/root")
    ran(code, "mine = 'one'", context=one)
    assert code.run_code("mine", context=two).error is not None
    assert ran(code, "import os; os.getcwd()", context=one).text == "/tmp/work"
    assert {one.id, two.id} <= {each.id for each in code.list_code_contexts()}
    code.restart_code_context(one)
    assert code.run_code("mine", context=one).error is not None
    assert ran(code, "import os; os.getcwd()", context=one).text == "/tmp/work"
    for each in (one, two.id):
        code.remove_code_context(each)
    assert not {one.id, two.id} & {each.id for each in code.list_code_contexts()}
    for call in (code.remove_code_context, code.restart_code_context, lambda gone: code.run_code("1", context=gone)):
        with pytest.raises(NotFoundException):
            call(one)


def test_a_directory_that_does_not_exist_is_refused_by_name(code: Sandbox) -> None:
    """And no context is left."""
    before = len(code.list_code_contexts())
    with pytest.raises(SandboxException, match="/nowhere"):
        code.create_code_context(cwd="/nowhere")
    assert len(code.list_code_contexts()) == before


def test_code_that_takes_too_long_is_interrupted_and_keeps_its_variables(code: Sandbox, context: Context) -> None:
    """The client gives up at its timeout; the next run finds a free kernel."""
    ran(code, "reached = 'yes'", context=context)
    with pytest.raises(TimeoutException):
        code.run_code("while True: pass", context=context, timeout=1)
    assert ran(code, "reached", context=context).text == "yes"


def test_a_restart_ends_what_runs(code: Sandbox, context: Context) -> None:
    """The run that was under way learns that its kernel is gone."""
    started = threading.Event()
    ended: list[Execution] = []

    def work() -> None:
        text = "print('on', flush=True)\nwhile True: pass"
        ended.append(code.run_code(text, context=context, timeout=TIMEOUT_S, on_stdout=lambda _: started.set()))

    thread = threading.Thread(target=work)
    thread.start()
    assert started.wait(TIMEOUT_S)
    code.restart_code_context(context)
    thread.join(TIMEOUT_S)
    assert ended[0].error is not None
    assert ended[0].error.name == "KernelError"
    assert ran(code, "1", context=context).text == "1"


def test_runs_in_one_context_wait_for_each_other_and_contexts_do_not(code: Sandbox, context: Context) -> None:
    """Two at once in one context: one after the other; another context answers meanwhile."""
    texts: list[str | None] = []
    text = "n = globals().get('n', 0) + 1\nif n == 1: open('/tmp/free').read()\nn"
    code.commands.run("mkfifo /tmp/free")
    threads = [threading.Thread(target=lambda: texts.append(ran(code, text, context=context).text)) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert ran(code, "'meanwhile'").text == "meanwhile"
    assert texts == []
    code.commands.run("echo > /tmp/free")
    for thread in threads:
        thread.join(TIMEOUT_S)
    assert sorted(filter(None, texts)) == ["1", "2"]


def test_a_kernel_that_dies_says_so_and_is_replaced(code: Sandbox, context: Context) -> None:
    """By a signal or by itself."""
    for text, said in (("import os; os.kill(os.getpid(), 9)", "SIGKILL"), ("import os; os._exit(3)", "exit status 3")):
        error = code.run_code(text, context=context).error
        assert error is not None
        assert error.name == "KernelError"
        assert said in error.value
        assert ran(code, "'again'", context=context).text == "again"


def test_bash_javascript_and_typescript_run_too(code: Sandbox) -> None:
    """Each keeps its state; JavaScript may await at the top level."""
    ran(code, "cd /tmp; kept=5", language="bash")
    assert ran(code, 'pwd; echo "$kept"; f() { echo called; }; f', language="bash").logs.stdout == [
        "/tmp\n",
        "5\n",
        "called\n",
    ]
    failed = code.run_code("false", language="bash")
    assert failed.error is not None
    assert failed.error.value == "1"
    ran(code, "const kept = await Promise.resolve(20)", language="javascript")
    assert ran(code, "kept + 1", language="js").text == "21"
    typed = ran(
        code, "const add = (a: number, b: number): number => a + b; console.log(add(1, 2))", language="typescript"
    )
    assert typed.logs.stdout == ["3\n"]
    thrown = code.run_code("throw new TypeError('no')", language="javascript")
    assert thrown.error is not None
    assert (thrown.error.name, thrown.error.value) == ("TypeError", "no")


@pytest.mark.parametrize("language", ["r", "java", "brainf***"])
def test_a_language_without_a_kernel_is_refused_with_those_there_are(code: Sandbox, language: str) -> None:
    """For runs and for contexts."""
    with pytest.raises(SandboxException, match="bash, javascript, python, typescript"):
        code.run_code("1", language=language)
    with pytest.raises(SandboxException, match="no kernel for language"):
        code.create_code_context(language=language)


def test_what_people_expect_is_installed(code: Sandbox) -> None:
    """The packages of the template can be imported, and pip installs for the user."""
    names = "numpy pandas scipy sklearn matplotlib seaborn plotly sympy PIL openpyxl requests bs4 lxml docx aiohttp"
    ran(code, "\n".join(f"import {name}" for name in names.split()))
    assert ran(code, "import site, sys; site.getusersitepackages() in sys.path").text == "True"
    assert "pip" in "".join(ran(code, "!pip --version").logs.stdout)


def test_a_sandbox_that_ends_during_a_run_is_named_as_the_reason(sdk_env: dict[str, str]) -> None:
    """Not a broken connection."""
    sandbox = Sandbox.create(timeout=120)
    started = threading.Event()

    def kill() -> None:
        assert started.wait(TIMEOUT_S)
        Sandbox.kill(sandbox.sandbox_id)

    thread = threading.Thread(target=kill)
    thread.start()
    with pytest.raises(TimeoutException, match="sandbox"):
        sandbox.run_code("print('on', flush=True)\nwhile True: pass", on_stdout=lambda _: started.set())
    thread.join(TIMEOUT_S)


def test_a_paused_sandbox_keeps_its_variables(sdk_env: dict[str, str]) -> None:
    """Memory is kept, kernels and all. A template without the interpreter says that its port is closed."""
    sandbox = Sandbox.create(timeout=120)
    ran(sandbox, "x = 41")
    sandbox.pause()
    sandbox.connect()
    assert ran(sandbox, "x + 1").text == "42"
    sandbox.kill()
    plain = Sandbox.create("base", timeout=60)
    with pytest.raises(TimeoutException, match="port is not open"):
        plain.run_code("1")
    plain.kill()


def test_a_warm_sandbox_has_its_kernel_before_anybody_asks(code: Sandbox, server: RunningServer) -> None:
    """It is no process of the client's, and knows the environment that the client gave at create."""

    def waits() -> bool:
        kept = (state.read(directory) for directory in (server.data_dir / "sandboxes").iterdir())
        return any(meta is not None and (meta.phase, meta.template) == ("warm", "code-interpreter-v1") for meta in kept)

    until_sync(waits, TIMEOUT_S, "a warm sandbox of the template")
    sandbox = Sandbox.create(timeout=120, envs={"LATER": "told"})
    assert sandbox.commands.list() == []
    kernels = "pgrep -f ipykernel_launche[r] || true"
    until_sync(lambda: sandbox.commands.run(kernels).stdout, TIMEOUT_S, "its kernel runs")
    assert ran(sandbox, "import os; os.environ['LATER'], os.environ['E2B_SANDBOX_ID']").text == str(
        ("told", sandbox.sandbox_id)
    )
    sandbox.kill()


def test_only_who_has_the_sandboxs_token_runs_code(code: Sandbox, server: RunningServer) -> None:
    """/execute asks for the access token; the sandbox's id alone is not enough."""
    headers = {"E2b-Sandbox-Id": code.sandbox_id, "E2b-Sandbox-Port": "49999"}
    for given in ({}, {"X-Access-Token": "wrong"}):
        answer = httpx.post(f"{server.url}/execute", json={"code": "1"}, headers={**headers, **given}, timeout=30)
        assert answer.status_code == 401


def test_the_environment_is_told_by_the_server_alone(code: Sandbox, server: RunningServer) -> None:
    """A client that says what the sandbox's environment is says it in vain."""
    given = base64.b64encode(b'{"GIVEN": "by a client"}').decode()
    headers = {"E2b-Sandbox-Id": code.sandbox_id, "E2b-Sandbox-Port": "49999", "Sandpty-Environment": given}
    assert httpx.get(f"{server.url}/contexts", headers=headers, timeout=30).status_code == 200
    assert ran(code, "import os; os.environ['GIVEN']").text == "at create"


def test_what_is_no_request_is_refused(code: Sandbox, server: RunningServer) -> None:
    """With a reason, and the program goes on."""
    headers = {
        "E2b-Sandbox-Id": code.sandbox_id,
        "E2b-Sandbox-Port": "49999",
        "X-Access-Token": code._envd_access_token or "",
    }
    bad: list[tuple[dict[str, Any], str]] = [
        ({}, "code is missing"),
        ({"code": 1}, "code is not a string"),
        ({"code": "1", "language": "python", "context_id": "x"}, "only one"),
        ({"code": "1", "env_vars": {"A=B": "1"}}, "environment variable"),
        ({"code": "1", "env_vars": ["A"]}, "env_vars"),
    ]
    for body, said in bad:
        answer = httpx.post(f"{server.url}/execute", json=body, headers=headers, timeout=30)
        assert answer.status_code == 400, answer.text
        assert said in answer.json()["message"]
    answer = httpx.post(f"{server.url}/execute", content=b"{nonsense", headers=headers, timeout=30)
    assert answer.status_code == 400
    assert httpx.get(f"{server.url}/nothing", headers=headers, timeout=30).status_code == 404
    assert ran(code, "1").text == "1"


def test_javascript_on_a_busy_machine_loses_no_output_and_no_result(code: Sandbox) -> None:
    """Deno's kernel then says that it is idle before it has said what came of the code."""
    busy = code.commands.run("for i in 1 2; do nice yes > /dev/null & done; wait", background=True)
    try:
        for number in range(20):
            execution = ran(code, f"console.log({number}); console.error('e'); {number} + 1", language="typescript")
            assert execution.logs.stdout == [f"{number}\n"]
            assert execution.logs.stderr == ["e\n"]
            assert execution.text == str(number + 1)
    finally:
        busy.kill()
        busy.disconnect()
