"""What a run tells: JSON lines, TensorBoard, a progress bar, traces, and an alarm."""

import collections
import contextlib
import itertools
import json
import pathlib
import sys
import time

import jax
import numpy as np


class Writer:
    """Writes scalars as JSON lines and to TensorBoard, with audio and pictures.

    Only process 0 writes. A step that is written again after a resume stands twice in
    the file; the later line counts.
    """

    def __init__(self, workdir):
        self._active = jax.process_index() == 0
        self.newest_losses: dict[str, str] = {}
        if self._active:
            from tensorboardX import SummaryWriter

            folder = pathlib.Path(workdir)
            folder.mkdir(parents=True, exist_ok=True)
            self._lines = (folder / "metrics.jsonl").open("a")
            self._board = SummaryWriter(str(folder / "tensorboard"))

    def scalars(self, step: int, values: dict[str, float]):
        """Writes a flat dict of numbers named `group/name`."""
        if not self._active:
            return
        values = {name: float(value) for name, value in values.items()}
        for name, value in values.items():
            if name.startswith("loss/"):
                self.newest_losses[name.removeprefix("loss/")] = f"{value:.3f}"
        # JSON has no NaN.
        line = {k: v if np.isfinite(v) else None for k, v in values.items()}
        self._lines.write(json.dumps({"step": step, "time": time.time(), **line}))
        self._lines.write("\n")
        self._lines.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def audio(self, step: int, name: str, audio, sample_rate: int):
        """Writes float32 [N] audio and its spectrogram."""
        if not self._active:
            return
        audio = np.clip(np.asarray(audio), -1, 1)
        self._board.add_audio(name, audio[:, None], step, sample_rate)
        self._board.add_image(
            f"spectrogram/{name}", spectrogram_image(audio), step, dataformats="HWC"
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._active:
            self._lines.close()
            self._board.close()


class StepClock:
    """Where the time of the steps goes.

    The device works while the host prepares: what is not spent on a part that is named
    is waiting for it, or giving it work.
    """

    def __init__(self):
        self._start()

    def _start(self):
        self._spent = collections.Counter()
        self._num_steps = 0
        self._began = time.monotonic()

    @contextlib.contextmanager
    def part(self, name: str):
        """What happens inside counts as this part: input, evaluate or save."""
        began = time.monotonic()
        yield
        self._spent[name] += time.monotonic() - began
        self._num_steps += name == "input"

    def scalars(self, audio_seconds: float) -> dict[str, float]:
        """Means over the steps since the last call.

        Args:
          audio_seconds: in a step, of all hosts.

        Returns:
          dict of seconds a step, `time/total` of which `time/input`, `time/evaluate`,
          `time/save` and the rest, `time/compute`; `speed/audio_seconds` per second;
          and, where the device tells, its `memory/peak_gigabytes` so far.
        """
        total = time.monotonic() - self._began
        spent = {name: self._spent[name] for name in ("input", "evaluate", "save")}
        seconds = {**spent, "compute": total - sum(spent.values()), "total": total}
        found = {f"time/{k}": v / self._num_steps for k, v in seconds.items()}
        found["speed/audio_seconds"] = audio_seconds * self._num_steps / total
        memory = jax.local_devices()[0].memory_stats() or {}
        if "peak_bytes_in_use" in memory:
            found["memory/peak_gigabytes"] = memory["peak_bytes_in_use"] / 1e9
        self._start()
        return found


def profiled(steps, folder, first: int | None, last: int | None):
    """The steps, and for TensorBoard's profiler a trace of those from first to last.

    Args:
      steps: iterator of their numbers, as `progress`.
      folder: gets the trace.
      first: None for no trace.
      last: of the trace.

    Yields:
      The steps.
    """
    for step in steps:
        if step != first:
            yield step
            continue
        with jax.profiler.trace(str(folder)):
            yield step
            yield from itertools.islice(steps, last - first)
        say(f"wrote a trace of steps {first} to {last} to {folder}")


def check_finite(step: int, values: dict[str, float]):
    """Raises FloatingPointError that names the first value that is not finite."""
    for name, value in values.items():
        if not np.isfinite(value):
            raise FloatingPointError(f"{name} is {value} at step {step}.")


def progress(first_step: int, num_steps: int, writer: Writer):
    """Steps from the first to the last, with a bar: rate, ETA, the newest losses.

    Args:
      first_step: where a resumed run stands.
      num_steps: of the whole run.
      writer: whose newest `loss/` values the bar shows.

    Yields:
      Each step's number, from 0.
    """
    from tqdm import tqdm

    with tqdm(
        total=num_steps,
        initial=first_step,
        unit="step",
        disable=jax.process_index() != 0,
        file=sys.stderr,
        # A log file wants lines now and then, a terminal a smooth bar.
        mininterval=0.1 if sys.stderr.isatty() else 10.0,
    ) as bar:
        for step in range(first_step, num_steps):
            yield step
            bar.set_postfix(writer.newest_losses, refresh=False)
            bar.update()


def say(line: str):
    """Prints a line above the progress bar."""
    from tqdm import tqdm

    if jax.process_index() == 0:
        tqdm.write(line)


def spectrogram_db(audio, n_fft: int = 1024, hop_length: int = 256) -> np.ndarray:
    """Spectrogram for the eye: float32 [N] -> [bins, frames] in dB, low bins first."""
    padded = np.pad(audio, n_fft // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, n_fft)[::hop_length]
    spectrum = np.abs(np.fft.rfft(frames * np.hanning(n_fft)))
    return 20 * np.log10(np.maximum(spectrum, 1e-5)).T


def spectrogram_image(audio, floor_db: float = -60.0, top_db: float = 40.0):
    """Spectrogram as a grey picture: float32 [N] -> uint8 [H, W, 3]."""
    level = (spectrogram_db(audio)[::-1] - floor_db) / (top_db - floor_db)
    grey = (np.clip(level, 0, 1) * 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)
