"""The embedded corpus: singers made of mathematics, who can all sing the same song.

A `Song` says what is sung, its `Score` how, frame by frame; a `Singer` adds only timbre
and pitch. So a conversion has an exact ground truth:

    song = score(held_out_songs(seed)[0])
    source = render(song, alto)
    truth = render(song, bass, f0_hz=converted_f0_hz)

The voice is a source-filter model (Fant 1960): a pulse train and noise, shaped every
frame by the resonances of a vocal tract.
"""

import dataclasses
import json
import os
import pathlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike

from svc_jax import errors

SAMPLE_RATE = 16000  # Hz
HOP_LENGTH = 64  # samples; the grid of f0_hz and of all that a score controls
FRAME_RATE = SAMPLE_RATE / HOP_LENGTH
NUM_HELD_OUT = 2  # songs 0 and 1 are never in a corpus
VERSION = 1  # of the sound: raise it when a change here alters the recordings

_FFT_LENGTH = 1024  # 56 ms beyond a window: a resonance 50 Hz wide has decayed by 76 dB
_FREQUENCIES = np.fft.rfftfreq(_FFT_LENGTH, 1 / SAMPLE_RATE).astype(np.float32)
_WINDOW = np.hanning(2 * HOP_LENGTH + 1)[:-1].astype(np.float32)  # overlaps sum to 1
_FRAMES_AT_ONCE = 256  # keeps the spectra of a block in the processor's cache
_VOICE_DBFS = -19.0  # of a note at 0 dB; softer notes and rests make it about -23
_MAJOR_SCALE = (-7, -5, -3, -1, 0, 2, 4, 5, 7)  # semitones about the tonic


@dataclasses.dataclass(frozen=True)
class Singer:
    """A voice: everything a conversion changes, and how its owner likes to sing."""

    name: str
    tonic_hz: float  # songs reach 7 semitones to either side
    tract_length: float  # divides all resonances; 1 is the mean man, 17.5 cm
    tilt_db: float  # of the glottal source with lip radiation, per octave
    breath_db: float  # noise of the breath under the voice
    ring_db: float = 0.0  # singer's formant: a boost at 2.8 kHz (Sundberg 1974)
    vibrato_hz: float = 5.5
    vibrato_cents: float = 0.0  # from the mean to either side


SINGERS = (
    Singer("treble", 370.0, 0.80, -8.0, -22.0),
    Singer("soprano", 392.0, 0.87, -6.0, -28.0, 4.0, 6.0, 45.0),
    Singer("alto", 277.0, 0.92, -9.0, -25.0, 0.0, 5.4, 30.0),
    Singer("tenor", 196.0, 0.98, -5.0, -30.0, 10.0, 5.8, 40.0),
    Singer("baritone", 147.0, 1.05, -7.0, -27.0, 6.0, 5.2, 30.0),
    Singer("bass", 110.0, 1.13, -10.0, -24.0, 0.0, 4.8, 20.0),
)


@dataclasses.dataclass(frozen=True)
class Phone:
    """A speech sound of the mean man, as targets that neighbours blur."""

    spelling: str
    formants_hz: tuple[float, float, float]
    voice_db: float = 0.0
    noise_db: float = -np.inf
    noise_hz: tuple[float, float] = (3000, 3000)  # centre, bandwidth
    seconds: float | None = None  # None: a vowel, as long as the note
    closure: float = 0.0  # seconds of silence before a stop bursts


# Vowels: means of 33 men (Peterson & Barney 1952). Nasals and liquid: after Fujimura
# 1962 and Lehiste 1964. The voiceless have the loci that bend their neighbours (after
# Delattre, Liberman & Cooper 1955) and noise where the front cavity resonates.
# The empty label is silence: the tract at rest, a uniform tube.
_MUTE = -np.inf
_TABLE = {
    "": Phone("", (500, 1500, 2500), _MUTE),
    "IY": Phone("i", (270, 2290, 3010), -1.0),
    "EH": Phone("e", (530, 1840, 2480)),
    "AE": Phone("ae", (660, 1720, 2410)),
    "AH": Phone("uh", (640, 1190, 2390)),
    "AA": Phone("a", (730, 1090, 2440)),
    "AO": Phone("o", (570, 840, 2410)),
    "UW": Phone("u", (300, 870, 2240), -2.0),
    "ER": Phone("er", (490, 1350, 1690)),
    "M": Phone("m", (250, 1000, 2200), -7.0, seconds=0.09),
    "N": Phone("n", (280, 1650, 2600), -7.0, seconds=0.09),
    "L": Phone("l", (360, 1300, 2900), -5.0, seconds=0.08),
    "S": Phone("s", (320, 1700, 2600), _MUTE, -11.0, (5800, 2200), 0.12),
    "SH": Phone("sh", (320, 1900, 2500), _MUTE, -9.0, (3200, 1300), 0.12),
    "F": Phone("f", (320, 900, 2300), _MUTE, -18.0, (7000, 6000), 0.11),
    "T": Phone("t", (320, 1800, 2600), _MUTE, -11.0, (4500, 3000), 0.035, 0.05),
    "K": Phone("k", (320, 2000, 2400), _MUTE, -12.0, (1900, 900), 0.045, 0.05),
    "P": Phone("p", (320, 750, 2200), _MUTE, -15.0, (900, 1500), 0.025, 0.06),
}
PHONES = tuple(sorted(label for label in _TABLE if label))
_VOWELS = tuple(label for label in PHONES if _TABLE[label].seconds is None)
_ONSETS = ("", *(label for label in PHONES if label not in _VOWELS))


@dataclasses.dataclass(frozen=True)
class Note:
    """One syllable on one pitch; without a vowel, a rest."""

    semitones: int  # above the tonic
    seconds: float
    onset: str = ""  # a consonant's label, or none
    vowel: str = ""
    level_db: float = 0.0


@dataclasses.dataclass(frozen=True)
class Song:
    """A melody with its words and dynamics, for any singer."""

    name: str
    notes: tuple[Note, ...]

    @property
    def seconds(self) -> float:
        return sum(note.seconds for note in self.notes)

    @property
    def phones(self) -> tuple[str, ...]:
        """Labels in the order sung, without silences."""
        pairs = ((note.onset, note.vowel) for note in self.notes)
        return tuple(label for pair in pairs for label in pair if label)

    @property
    def text(self) -> str:
        """Syllables as lowercase words."""
        syllables = [(n.onset, n.vowel) for n in self.notes if n.vowel]
        return " ".join(_TABLE[c].spelling + _TABLE[v].spelling for c, v in syllables)


@dataclasses.dataclass(frozen=True, eq=False)
class Score:
    """A song frame by frame: all of a rendering that does not depend on the singer.

    Frame t stands at sample t * HOP_LENGTH; T is a multiple of 5, 20 ms.
    """

    phones: tuple[tuple[str, float, float], ...]  # label, start and end in seconds
    voiced: np.ndarray  # [T] bool
    semitones: np.ndarray  # [T] above the tonic, gliding from note to note
    vibrato: np.ndarray  # [T] 0..1: how far it has grown
    formants_hz: np.ndarray  # [T, 3] of the mean man
    voice: np.ndarray  # [T] rms of the voice, 0 where unvoiced
    noise: np.ndarray  # [T] rms of frication and bursts
    noise_hz: np.ndarray  # [T, 2] centre and bandwidth of that noise


def make_song(seed: int, index: int) -> Song:
    """Composes song `index` of a seed: 8 to 12 seconds that contain every phone."""
    rng = np.random.default_rng((seed, index))
    onsets, vowels = _deal(rng, _ONSETS), _deal(rng, _VOWELS)
    beats = _deal(rng, (1, 1, 1, 2, 2, 3))
    beat, enough = rng.uniform(0.28, 0.42), rng.uniform(8.0, 9.5)  # seconds
    notes, degree, until_rest = [Note(0, 0.15)], len(_MAJOR_SCALE) // 2, 0
    while sum(note.seconds for note in notes) < enough:
        until_rest = until_rest or rng.integers(5, 9)
        degree = int(np.clip(degree + rng.integers(-2, 3), 0, len(_MAJOR_SCALE) - 1))
        semitones, level_db = _MAJOR_SCALE[degree], rng.uniform(-7.0, 1.0)
        seconds = beat * next(beats)
        notes.append(Note(semitones, seconds, next(onsets), next(vowels), level_db))
        until_rest -= 1
        if not until_rest:
            notes.append(Note(semitones, beat))
    notes.append(Note(notes[-1].semitones, 0.2))
    return Song(f"song_{index:02d}", tuple(notes))


def _deal(rng: np.random.Generator, items: Sequence) -> Iterator:
    """Deals `items` for ever: each once a round, so that every song has them all."""
    last = None
    while True:
        hand = [items[i] for i in rng.permutation(len(items))]
        if hand[0] == last:  # a vowel sung twice without onset would sound as one
            hand.reverse()
        yield from hand
        last = hand[-1]


def held_out_songs(seed: int = 0) -> tuple[Song, ...]:
    """Songs of this seed that no corpus contains."""
    return tuple(make_song(seed, index) for index in range(NUM_HELD_OUT))


def score(song: Song) -> Score:
    """Turns notes and syllables into frame-level controls, with coarticulation."""
    segments = []  # label, note, frames
    for note in song.notes:
        onset = _TABLE[note.onset]
        closed = round(onset.closure * FRAME_RATE)
        sounding = round((onset.seconds or 0.0) * FRAME_RATE)
        vowel = round(note.seconds * FRAME_RATE) - closed - sounding
        segments.append(("", note, closed))
        segments.append((note.onset, note, sounding))
        segments.append((note.vowel, note, vowel))
    num_frames = sum(frames for *_, frames in segments)
    segments.append(("", song.notes[-1], -num_frames % 5))
    labels, notes, lengths = zip(*segments, strict=True)
    ends = np.cumsum(lengths)
    starts = ends - lengths
    times = zip(labels, starts / FRAME_RATE, ends / FRAME_RATE, strict=True)

    def per_frame(values: Iterable) -> np.ndarray:
        return np.repeat(np.array(list(values)), lengths, axis=0)

    phones = [_TABLE[label] for label in labels]
    voice = 10 ** (per_frame(phone.voice_db for phone in phones) / 20)
    noise = 10 ** (per_frame(phone.noise_db for phone in phones) / 20)
    level_db = _smooth(per_frame(note.level_db for note in notes), 0.15) + _VOICE_DBFS
    age = np.arange(ends[-1]) / FRAME_RATE - per_frame(starts / FRAME_RATE)
    voiced = voice > 0
    # Rises from 0 at the edges of voicing: no voice sounds where no f0 is known.
    swell = voiced * np.clip(2 * _smooth(voiced, 0.05) - 1, 0, 1)
    return Score(
        phones=tuple((label, start, end) for label, start, end in times if label),
        voiced=voiced,
        semitones=_smooth(per_frame(note.semitones for note in notes), 0.1),
        vibrato=_smooth(np.clip((age - 0.2) / 0.3, 0, 1), 0.1),
        formants_hz=_smooth(per_frame(phone.formants_hz for phone in phones), 0.09),
        voice=swell * _smooth(voice, 0.05) * 10 ** (level_db / 20),
        noise=_smooth(noise, 0.03) * 10 ** (level_db / 20),
        noise_hz=per_frame(phone.noise_hz for phone in phones),
    )


def _smooth(values: np.ndarray, seconds: float) -> np.ndarray:
    """Moving Hann average of [T] or [T, D] along time; `seconds` is its full width."""
    half = round(seconds * FRAME_RATE / 2)
    kernel = np.hanning(2 * half + 1)
    padded = np.pad(values, [(half, half), (0, 0)][: values.ndim], "edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, len(kernel), axis=0)
    return windows @ (kernel / kernel.sum())


def melody_hz(score: Score, singer: Singer) -> np.ndarray:
    """The pitch this singer gives to a score: own tonic, own vibrato.

    Returns:
        [T] in Hz, 0 where unvoiced.
    """
    seconds = np.arange(len(score.voiced)) / FRAME_RATE
    wave = np.sin(2 * np.pi * singer.vibrato_hz * seconds)
    semitones = score.semitones + singer.vibrato_cents / 100 * score.vibrato * wave
    return np.where(score.voiced, singer.tonic_hz * 2 ** (semitones / 12), 0.0)


def render(
    score: Score,
    singer: Singer,
    f0_hz: np.ndarray | None = None,
    *,
    seed: int | tuple[int, ...] = 0,
) -> np.ndarray:
    """Sings a score in a singer's voice: the truth that a conversion should reach.

    Level and voicing follow the score alone; where `f0_hz` is 0 in a voiced frame, the
    nearest pitch is sung.

    Args:
        score: what is sung, T frames.
        singer: the voice.
        f0_hz: [T] pitch, 0 where unvoiced; without it, the singer's own melody_hz.
        seed: of the noise in breath and consonants.

    Returns:
        [T * HOP_LENGTH] float32 in [-1, 1].
    """
    f0_hz = melody_hz(score, singer) if f0_hz is None else np.asarray(f0_hz, float)
    if f0_hz.shape != score.voiced.shape:
        raise ValueError(f"f0_hz is {f0_hz.shape}, the score {score.voiced.shape}.")
    f0_hz = _fill(f0_hz)
    num_frames = len(f0_hz)
    noise = np.random.default_rng(seed).standard_normal(num_frames * HOP_LENGTH)
    sources = np.array([_pulses(f0_hz), noise], np.float32)
    sources = sources.reshape(2, num_frames, HOP_LENGTH)
    sources = np.pad(sources, [(0, 0), (1, 0), (0, 0)])  # frame 0 is centred on 0

    formants_hz = score.formants_hz / singer.tract_length
    # Singers open the mouth on high notes: F1 never lies below f0 (Sundberg 1975).
    formants_hz[:, 0] = np.maximum(formants_hz[:, 0], f0_hz)
    noise_hz = score.noise_hz / singer.tract_length
    upper_tract = _upper_tract(singer)
    # A causal low-pass of fractional order has any slope, here from 80 Hz upwards.
    order = singer.tilt_db / (20 * np.log10(2))
    tilt = ((1 + 1j * _FREQUENCIES / 80) ** order).astype(np.complex64)
    radiation = _FREQUENCIES / np.hypot(_FREQUENCIES, 2000)  # of the breath's noise
    breath = score.voice * 10 ** (singer.breath_db / 20)

    num_hops = _FFT_LENGTH // HOP_LENGTH
    output = np.zeros((num_frames + num_hops, HOP_LENGTH), np.float32)
    for start in range(0, num_frames, _FRAMES_AT_ONCE):
        stop = min(start + _FRAMES_AT_ONCE, num_frames)
        part = slice(start, stop)
        frames = [sources[:, part], sources[:, start + 1 : stop + 1]]
        frames = np.concatenate(frames, axis=-1) * _WINDOW
        pulses, noise = np.fft.rfft(frames, _FFT_LENGTH)
        tract = _tract(formants_hz[part]) * upper_tract
        voice = _scale(tract * tilt, score.voice[part], f0_hz[part])
        flow = _scale(tract * radiation, breath[part])
        friction = _scale(_band(*noise_hz[part].T), score.noise[part])
        spectrum = pulses * voice + noise * (flow + friction)
        blocks = np.fft.irfft(spectrum, _FFT_LENGTH)
        for k, block in enumerate(np.split(blocks, num_hops, axis=1)):
            output[start + k : stop + k] += block
    return output[1 : num_frames + 1].reshape(-1)


def _fill(f0_hz: np.ndarray) -> np.ndarray:
    """Gives each unvoiced frame of [T] the pitch of the nearest voiced one."""
    voiced = np.flatnonzero(f0_hz > 0)
    if not voiced.size:
        raise ValueError("f0_hz has no voiced frame.")
    middles = (voiced[1:] + voiced[:-1]) / 2
    return f0_hz[voiced[np.searchsorted(middles, np.arange(len(f0_hz)))]]


def _pulses(f0_hz: np.ndarray) -> np.ndarray:
    """Cosines of amplitude 1 at every harmonic below Nyquist; [T] Hz to [T * hop]."""
    frames = np.arange(len(f0_hz) * HOP_LENGTH) / HOP_LENGTH
    f0_hz = np.interp(frames, np.arange(len(f0_hz)), f0_hz)
    phase = np.cumsum(f0_hz / SAMPLE_RATE)
    phase -= np.rint(phase)  # turns; within half a turn the kernel has no singularity
    room = SAMPLE_RATE / 2 / f0_hz
    highest = np.floor(room)
    odd = 2 * highest + 1
    dirichlet = (odd * np.sinc(odd * phase) / np.sinc(phase) - 1) / 2
    # The highest harmonic fades as it nears Nyquist, so that none clicks in or out.
    return dirichlet - (highest + 1 - room) * np.cos(2 * np.pi * highest * phase)


def _resonance(centre_hz: ArrayLike, width_hz: ArrayLike) -> np.ndarray:
    """Response of a pole pair, 1 at 0 Hz: [..., F] complex for [...] resonances."""
    centre = np.asarray(centre_hz, np.float32)[..., None]
    width = np.asarray(width_hz, np.float32)[..., None]
    return centre**2 / (centre**2 - _FREQUENCIES**2 + 1j * width * _FREQUENCIES)


def _band(centre_hz: ArrayLike, width_hz: ArrayLike) -> np.ndarray:
    """Response of a band-pass, 1 at its centre: [..., F] complex for [...] bands."""
    slope = np.asarray(np.divide(width_hz, np.square(centre_hz)), np.float32)
    return _resonance(centre_hz, width_hz) * (1j * slope[..., None] * _FREQUENCIES)


def _tract(formants_hz: np.ndarray) -> np.ndarray:
    """Response of resonances in series: [..., K] Hz to [..., F] complex."""
    widths_hz = 50 * (1 + formants_hz**2 / 6e6)  # Tappert, Martony & Fant 1963
    response = np.ones(1, np.complex64)
    for k in range(formants_hz.shape[-1]):
        response = response * _resonance(formants_hz[..., k], widths_hz[..., k])
    return response


def _upper_tract(singer: Singer) -> np.ndarray:
    """Response [F] of what a singer's vowels share: the tract above F3, the ring.

    There the tract is a uniform tube, with resonances at odd multiples of 500 Hz;
    even those far above Nyquist lift the treble.
    """
    tube = _tract(np.arange(3500, 32000, 1000) / singer.tract_length)
    ring = 10 ** (singer.ring_db / 20) - 1
    return tube * (1 + ring * _band(2800 / singer.tract_length, 500.0))


def _scale(
    response: np.ndarray, rms: np.ndarray, f0_hz: np.ndarray | None = None
) -> np.ndarray:
    """Scales filters [T, F] so that their output has a level.

    Args:
        response: [T, F] complex.
        rms: [T] of what comes out of the filter.
        f0_hz: [T] pitch of the pulses that go in; without it, white noise goes in.
    """
    power = np.abs(response) ** 2
    if f0_hz is None:
        power = power.mean(axis=1)
    else:
        harmonics = np.arange(1, SAMPLE_RATE / 2 / f0_hz.min() + 1)
        bins = np.rint(f0_hz[:, None] * harmonics * (_FFT_LENGTH / SAMPLE_RATE))
        bins = np.minimum(bins.astype(int), power.shape[1])  # the last: above Nyquist
        power = np.pad(power, [(0, 0), (0, 1)])
        power = np.take_along_axis(power, bins, axis=1).sum(axis=1) / 2
    gain = (rms / np.sqrt(power)).astype(np.float32)
    return response * gain[:, None]


def write_corpus(
    output_dir: str | os.PathLike[str],
    *,
    seed: int = 0,
    minutes: float = 5.0,
    singers: Sequence[Singer] = SINGERS,
) -> pathlib.Path:
    """Writes `recordings/<singer>/song_XX.wav` and `transcripts.tsv`, once.

    All singers sing the same songs, at least `minutes` together; the last song is the
    validation split. The folder appears when it is complete; where this very corpus
    stands already, nothing is done.
    """
    output_dir = pathlib.Path(output_dir)
    made_from = {
        "version": VERSION,
        "seed": seed,
        "minutes": minutes,
        "singers": [dataclasses.asdict(singer) for singer in singers],
    }
    marker = output_dir / "corpus.json"
    if marker.exists() and json.loads(marker.read_text()) == made_from:
        return output_dir
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise errors.UserError(
            f"{output_dir} is not the demo corpus of seed {seed}, {minutes} minutes and "
            f"{len(singers)} singers: name a new folder, or empty this one."
        )
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=output_dir.parent, prefix=".corpus-", ignore_cleanup_errors=True
    ) as temporary:
        unfinished = pathlib.Path(temporary) / "corpus"
        _write_files(unfinished, seed, minutes, singers)
        (unfinished / "corpus.json").write_text(json.dumps(made_from, indent=1) + "\n")
        unfinished.replace(output_dir)
    return output_dir


def _write_files(
    folder: pathlib.Path, seed: int, minutes: float, singers: Sequence[Singer]
) -> None:
    """Composes, sings and transcribes a corpus into a new folder."""
    import soundfile

    songs = []
    while len(songs) < 2 or sum(s.seconds for s in songs) * len(singers) < 60 * minutes:
        songs.append(make_song(seed, NUM_HELD_OUT + len(songs)))
    rows = ["path\tsplit\tspeaker\ttext\tphones"]
    for s, singer in enumerate(singers):
        (folder / "recordings" / singer.name).mkdir(parents=True)
        for n, song in enumerate(songs):
            path = f"recordings/{singer.name}/{song.name}.wav"
            audio = render(score(song), singer, seed=(seed, n, s))
            soundfile.write(folder / path, audio, SAMPLE_RATE, subtype="PCM_16")
            split = "validation" if song is songs[-1] else "train"
            phones = " ".join(song.phones)
            rows.append(f"{path}\t{split}\t{singer.name}\t{song.text}\t{phones}")
    (folder / "transcripts.tsv").write_text("\n".join(rows) + "\n")
