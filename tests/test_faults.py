"""What goes wrong around a run: data that stop coming, a second run, damaged files, odd clocks.

The full disk is in test_bad_input.py, kills and signals in test_resume.py, damaged checkpoints and
updates that are not finite in test_training.py.
"""

import contextlib
import io
import json
import math
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time

import jax
import numpy as np
import pytest
from rich.console import Console
from tiny import small

from ddpm_jax import config as config_lib
from ddpm_jax import data
from ddpm_jax.data.sources import ArraySource
from ddpm_jax.errors import SourceError, UserError
from ddpm_jax.runs import metrics, workdir
from ddpm_jax.runtime import devices
from ddpm_jax.runtime.interrupt import StopRequest
from ddpm_jax.runtime.output import surviving
from ddpm_jax.training import in_flight, progress
from ddpm_jax.training.feed import feed, plan_calls
from ddpm_jax.training.log import Log
from ddpm_jax.training.loop import train
from ddpm_jax.training.pictures import Pictures
from experiments import command

pytestmark = pytest.mark.quick_to_compile

STEPS = 300
CONFIG = small(
    data__timeout_s=30,
    process__num_timesteps=4,
    optim=dict(warmup_steps=2, learning_rate=1e-3),
    train=dict(num_steps=STEPS, batch_size=2, num_samples=2, log_every=10, checkpoint_every=100),
    eval=dict(every=0),
    mesh=dict(data=1),
)


class Watched(ArraySource):
    """Noise for images; calls `at(n)` before the batch of step `first + n` is read."""

    def __init__(self, at):
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (1000, 8, 8, 1), np.uint8)
        super().__init__(images, np.zeros(1000, np.int32))
        self.count, self.at = 0, at

    def read(self, indices):
        self.at(self.count)
        self.count += 1
        return super().read(indices)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Call as run(at): train in tmp_path/run on a `Watched` source."""

    def run(at, num_classes=0, **sections):
        names = tuple(map(str, range(num_classes)))
        dataset = data.Dataset(Watched(at), None, (8, 8, 1), num_classes, names)
        monkeypatch.setattr(data, "open_dataset", lambda *arguments: dataset)
        config = CONFIG | {name: CONFIG[name] | fields for name, fields in sections.items()}
        return train(config_lib.from_dict(config), tmp_path / "run")

    return run


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.slow
@pytest.mark.loose_promotion(reason="optax's schedules multiply floats with int32 counts")
def test_a_run_whose_data_stop_saves_its_state_and_goes_on_later(run, tmp_path):
    """A file that vanishes; then 300 steps, a second run being refused."""
    root = tmp_path / "run"

    def vanishes(n):
        if n == 15:
            raise FileNotFoundError(2, "No such file or directory", "/mnt/images")

    with pytest.raises(SourceError, match="batch of step 15 cannot be read from data.name='digit"):
        run(vanishes)
    assert (root / "checkpoints" / "15").is_dir()
    assert [row["step"] for row in metrics.read(root / "metrics.jsonl")] == [10, 15]

    files, refused = open_files(), []

    def healthy(n):
        if n == 100:
            with pytest.raises(UserError) as error, workdir.locked(root):
                pass
            refused.append(str(error.value))

    assert int(run(healthy).state.step) == STEPS
    assert f"in use by another training (process {os.getpid()} on " in refused[0]
    assert open_files() <= files  # none is left open by 285 steps, three saves and a start
    steps = [row["step"] for row in metrics.read(root / "metrics.jsonl")]
    assert steps == [10, 15, *range(20, STEPS + 1, 10)]
    kept = {path.name for path in (root / "checkpoints").iterdir()}
    assert kept == {"200", "300"}


@pytest.mark.slow
@pytest.mark.loose_promotion(reason="optax's schedules multiply floats with int32 counts")
def test_a_classifier_whose_data_hang_saves_its_state(run, tmp_path):
    """The main loop's time-out is the classifier's; it hangs before step 12 of a new run."""
    released = threading.Event()
    sections = {"data": {"timeout_s": 1.0}, "model": {"name": "classifier"}}
    try:
        with pytest.raises(SourceError, match="'digits' hangs: .*; the state of step 12 is saved"):
            run(lambda n: n < 12 or released.wait(60), num_classes=2, **sections)
    finally:
        released.set()
    assert (tmp_path / "run" / "checkpoints" / "12").is_dir()
    assert [row["step"] for row in metrics.read(tmp_path / "run" / "metrics.jsonl")] == [10, 12]


def test_a_source_that_hangs_is_named_in_time():
    config = config_lib.from_dict(CONFIG | {"data": {"name": "digits", "timeout_s": 0.5}})
    released, given = threading.Event(), []
    batches = data.Batches(Watched(lambda n: n < 3 or released.wait(60)), 2, seed=0)
    mesh = devices.make_mesh(config)
    with pytest.raises(
        SourceError, match="data.name='digits' hangs: nothing came within 0.5 seconds"
    ):
        for batch in feed(config.data, batches, mesh, list(plan_calls(0, 9, 2, [3]))):
            given.append(batch["image"].shape)
    released.set()
    assert given == [(2, 2, 8, 8, 1), (2, 8, 8, 1)]  # steps 0 and 1 in one call, then 2; 3 hangs


def test_the_end_of_a_process_however_it_comes_lets_its_lock_go(tmp_path):
    holder = (
        "import fcntl, sys; file = open(sys.argv[1], 'a+'); fcntl.flock(file, fcntl.LOCK_EX); "
        "print('process 7 on elsewhere', file=file, flush=True); print(flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, tmp_path / "lock"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        process.stdout.readline()
        with pytest.raises(UserError, match=r"in use by another training \(process 7 on else"):
            with workdir.locked(tmp_path):
                pass
        process.kill()
    for _ in range(2):
        with workdir.locked(tmp_path):
            assert (tmp_path / "lock").read_text().startswith(f"process {os.getpid()} on ")


def test_a_directory_that_cannot_be_written_is_one_line():
    with tempfile.TemporaryDirectory() as root:  # pytest's own are closed to other users
        os.chmod(root, 0o555)
        with contextlib.ExitStack() as stack:
            if os.getuid() == 0:  # root may write anywhere
                os.seteuid(65534)
                stack.callback(os.seteuid, 0)
            for path in (root, os.path.join(root, "new")):
                with pytest.raises(UserError, match=r"cannot be written \(Permission denied\)"):
                    with workdir.locked(path):
                        pass
                with pytest.raises(UserError, match=r"cannot be written \(Permission denied\)"):
                    workdir.open_for_training(path, config_lib.from_dict(CONFIG))


def test_a_damaged_log_loses_its_damaged_lines_alone(tmp_path):
    paths = workdir.WorkDir(tmp_path)
    good = [json.dumps({"step": n, "loss": 0.5}).encode() for n in (1, 2, 3)]
    bad = [b"\xff\xfe\x00garbage", b"null", b"7", b'{"loss": 1}', b'{"step": "9"}', b"[" * 99999]
    paths.metrics.write_bytes(b"\n".join([*good[:2], *bad, good[2], good[0][:7]]))
    assert [row["step"] for row in metrics.read(paths.metrics)] == [1, 2, 3]
    writer = metrics.MetricsWriter(paths, 2)
    writer.scalars(4, {"loss": 0.25})
    writer.close()
    lines = paths.metrics.read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 4]


@pytest.mark.slow
def test_the_log_is_written_without_pytorch_where_that_is_installed(tmp_path):
    """tensorboardX would load it, for as long as all other imports of a training take."""
    (tmp_path / "torch.py").write_text("print('loaded'); Tensor = object")
    program = (
        "import pathlib, sys; from ddpm_jax.runs import metrics, workdir\n"
        "paths = workdir.WorkDir(pathlib.Path(sys.argv[1]))\n"
        "writer = metrics.MetricsWriter(paths, 0)\n"
        "writer.scalars(1, {'loss': 0.5})\n"
        "writer.close()\n"
        "print('written'); import torch"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.split() == ["written", "loaded"], done.stderr
    assert metrics.read(tmp_path / "metrics.jsonl") and list(tmp_path.glob("tensorboard/events*"))


def test_a_clock_that_stands_or_goes_back_changes_the_speed_alone(monkeypatch):
    monkeypatch.setattr(progress.time, "perf_counter", lambda: 10.0)
    line = progress.ProgressLine(Console(quiet=True), 0, 100, batch_size=8)
    line.restart_clock(0)
    speeds = [line.update(step, 0.5, at) for step, at in enumerate((12.0, 5.0, 5.0, 9.0), 1)]
    assert speeds == [4, 4, 4, 2] and all(math.isfinite(speed) for speed in speeds)


def test_one_slow_interval_moves_the_time_left_little(monkeypatch):
    clock, said = [0.0], []
    monkeypatch.setattr(progress.time, "perf_counter", lambda: clock[0])
    line = progress.ProgressLine(Console(file=io.StringIO()), 0, 1000, batch_size=8)
    line.restart_clock(0)
    for n, seconds in enumerate([1.0] * 9 + [7.0], start=1):
        clock[0] += seconds
        line.update(10 * n, 0.5, clock[0])
        shown = line._console.file.getvalue().split()[-2]
        minutes, seconds = map(int, shown.split(":")[1:])
        said.append(60 * minutes + seconds)
    assert said[8] == 91 and said[9] == 144  # by the last interval only it would be 630


def test_without_a_home_directory_programs_are_not_kept(monkeypatch, caplog):
    for name in ("HOME", "XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2_000_000_000)  # as by docker run -u
    before = jax.config.jax_compilation_cache_dir
    command._use_compilation_cache()
    assert "there is no home directory, so compiled programs are not kept" in caplog.text
    assert jax.config.jax_compilation_cache_dir == before


@pytest.mark.parametrize(("error", "code"), [(SourceError("gone"), 75), (UserError("typo"), 2)])
def test_schedulers_can_tell_what_may_go_through_later(error, code, capsys):
    with pytest.raises(SystemExit) as exit_:
        command._fail(error)
    assert exit_.value.code == code
    assert capsys.readouterr().err == f"error: {error}\n"


@pytest.mark.slow
def test_what_hangs_does_not_keep_the_process_from_ending():
    program = (
        "import threading; from ddpm_jax.data.ahead import map_ahead\n"
        "next(map_ahead(lambda i: threading.Event().wait(), [1, 2], 1, 0, timeout=0.1))"
    )
    ended = subprocess.run(  # what hangs would hang for ever
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 1 and "TimeoutError: nothing came within 0.1 seconds" in ended.stderr


class Call:
    """The result of a call on a device that takes `seconds` for each, on a clock of its own."""

    clock = 0.0  # of the host
    ends = 0.0  # when the device has done all that it was sent

    def __init__(self, seconds):
        Call.ends = self.ends = max(Call.ends, Call.clock) + seconds

    def block_until_ready(self):
        Call.clock = max(Call.clock, self.ends)

    def is_ready(self):
        return Call.clock >= self.ends


@pytest.mark.parametrize("seconds", [1e-4, 0.02, 0.3, 0.9, 4.0, 60.0])
def test_the_host_runs_ahead_by_a_second_or_by_one_call(seconds, monkeypatch):
    monkeypatch.setattr(in_flight.time, "perf_counter", lambda: Call.clock)
    monkeypatch.setattr(Call, "clock", 0.0)
    monkeypatch.setattr(Call, "ends", 0.0)
    flight, begun = in_flight.InFlight(), 0.0
    for _ in range(40):
        flight.add(Call(seconds))
        assert Call.ends - Call.clock <= max(1.0, seconds) + 1e-9  # what a signal waits for
        begun = begun or Call.clock
        Call.clock += 0.9 * seconds  # the host's own work is hidden
    assert Call.ends == pytest.approx(40 * seconds)  # the device was never idle


def test_each_interval_has_the_speed_of_the_device(tmp_path):
    def takes_40_ms(x):  # however far the host runs ahead
        time.sleep(0.04)
        return x

    @jax.jit
    def call(x):
        x = jax.pure_callback(takes_40_ms, x, x)
        names = ("loss", "grad_norm", "param_norm", "skipped", "skipped_in_a_row")
        quartiles = dict.fromkeys(("quartile_sum", "quartile_count"), np.ones(4, np.float32))
        return x, dict.fromkeys(names, x) | quartiles

    x, _ = jax.block_until_ready(call(np.float32(0)))
    writer = metrics.MetricsWriter(workdir.WorkDir(tmp_path), 0)
    line = progress.ProgressLine(Console(quiet=True), 0, 15, batch_size=8)
    log, flight = Log(writer, line, lambda step: 1e-3, 20, str), in_flight.InFlight()
    line.restart_clock(0)
    for step in range(1, 16):
        x, found = call(x)
        log.add(found)
        last = flight.add(found)
        if step % 5 == 0:
            log.end_interval(step, last)
        if step == 10:  # as before a checkpoint
            log.flush()
    log.flush()
    writer.close()
    speeds = [row["images_per_second"] for row in metrics.read(tmp_path / "metrics.jsonl")]
    assert len(speeds) == 3 and max(speeds) < 1.5 * 8 / 0.04, speeds


def test_a_hangup_stops_a_run_once_and_nohup_keeps_it_ignored():
    before = signal.getsignal(signal.SIGHUP)
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.signal is None
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with StopRequest() as stop:
            for _ in range(2):  # the shell's and the kernel's
                os.kill(os.getpid(), signal.SIGHUP)
                assert stop.signal == signal.SIGHUP
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
@pytest.mark.loose_promotion(reason="optax's schedules multiply floats with int32 counts")
def test_a_hangup_and_a_lost_reader_leave_a_saved_state(run, tmp_path, monkeypatch, caplog):
    """As when an ssh connection ends: the terminal is gone, then the signal comes."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    (reader, writer), added = os.pipe(), []

    def at(n):
        if n == 12:
            os.close(reader)
        if n == 25:
            os.kill(os.getpid(), signal.SIGHUP)

    add = in_flight.InFlight.add

    def watched(flight, call_metrics):
        added.append(add(flight, call_metrics))
        return added[-1]

    try:
        with os.fdopen(writer, "w") as lost, monkeypatch.context() as change:
            change.setattr("sys.stdout", lost)
            change.setattr(in_flight.InFlight, "add", watched)
            held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            result = run(at, train={"num_steps": 20_000_000})
    finally:
        signal.signal(signal.SIGHUP, before)
    # in KiB; a list of the calls to come would take gigabytes
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held < 1_000_000
    step = int(result.state.step)
    assert result.signal == signal.SIGHUP and 20 <= step <= 26
    assert len(added) == step  # each call was waited for in time
    assert (tmp_path / "run" / "checkpoints" / str(step)).is_dir()
    assert "cannot be written any more (Broken pipe); the program goes on" in caplog.text


def test_an_output_without_a_reader_is_given_up_once(caplog):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as lost:
        output = surviving(lost)
        for _ in range(3):
            print("a line", file=output, flush=True)
        Console(file=output).print("another")
    assert caplog.text.count("cannot be written any more (Broken pipe); the program goes on") == 1


@pytest.mark.slow
def test_a_signal_while_a_grid_is_drawn_is_obeyed_before_the_next(run, monkeypatch):
    drawn = []

    def draw(self, step, name, params):
        drawn.append((step, name))
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Pictures, "draw", draw)
    with jax.numpy_dtype_promotion("standard"):
        result = run(lambda n: None, train={"sample_every": 2})
    assert drawn == [(2, "raw")] and int(result.state.step) == 2


@pytest.mark.slow
@pytest.mark.parametrize("words", [["figures", "--help"], ["train", "--helpfull"]])
def test_a_command_without_a_reader_is_no_traceback(words):
    """As `command | true`."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", f"experiments.{words[0]}", *words[1:]],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
    )
    os.close(writer)
    assert "Traceback" not in done.stderr and "Broken" in done.stderr, done.stderr
