"""What others made (weights, checkpoints, annotations, videos, stores) runs nothing, writes nowhere and fills no memory."""

import ast
import gzip
import io
import json
import resource
import warnings
import zipfile
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image

import waver
from waver.config import load_config
from waver.config.loading import ConfigError, load_robustness, load_sweep, parse_overrides
from waver.data.annotations.reading import AnnotationError, Problems, read_json
from waver.data.annotations.table import load_table
from waver.data.clip import Clip, ClipError
from waver.data.clip_store import ClipStore, StoreSettings
from waver.data.clip_store_writer import create_store, write_block
from waver.data.ledger import DecodedClip, StoreError
from waver.data.video.decoder import Decoder
from waver.data.video.resizing import Resizing
from waver.model.errors import BackboneError
from waver.model.pretrained.weights import check_weights, load_backbone
from waver.runs.checkpoint import CheckpointError, restore_training, save_checkpoint
from waver.tools.files import atomic_write
from waver.tools.html import html_table, new_figure, svg, write_html
from waver.training.build import build_training

SIZE = 16
HOW = {"frames_per_second": 10, "max_frames": 4, "target": Resizing(SIZE)}
ARCHITECTURE = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": SIZE, "layers": 1, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
}


PACKAGE = Path(waver.__file__).parent
GUARDED = {
    "pickle.loads": {"on_ray/cluster/blocks.py"},
    "torch.load": {"model/pretrained/weight_files.py", "runs/checkpoint.py"},
    "torch.jit.load": {"model/pretrained/weight_files.py"},
    "yaml.load": {"config/loading.py"},
    "Image.open": {"data/clips_file.py"},
}


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.mkdir, (self.path,))


@pytest.mark.parametrize("name", ["w.pt", "w.bin", "w.safetensors", "w.ckpt"])
@pytest.mark.parametrize("legacy", [False, True])
def test_weights_that_are_a_pickle_are_not_unpickled(tmp_path, name, legacy):
    torch.save({"a": Bomb(tmp_path / "exploded")}, tmp_path / name, _use_new_zipfile_serialization=not legacy)
    for read in (check_weights, load_backbone):
        with pytest.raises(BackboneError, match="cannot be read as weights"):
            read(ARCHITECTURE, str(tmp_path / name), image_size=SIZE)
    assert not (tmp_path / "exploded").exists()


class WritesWhenLoaded(torch.nn.Module):
    """TorchScript may write files, and calls `__setstate__` while it is loaded."""

    def __init__(self, path: str):
        super().__init__()
        self.path = path
        self.weight = torch.nn.Parameter(torch.ones(2))

    def forward(self, x):
        return x

    @torch.jit.export
    def __getstate__(self):
        return self.path, self.weight, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, torch.Tensor, bool]):
        self.path, self.weight, self.training = state[0], state[1], state[2]
        torch.save(state[1], state[0])


def test_torchscript_that_would_run_when_it_is_loaded_is_refused(tmp_path):
    path, written = tmp_path / "w.pt", tmp_path / "written"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(WritesWhenLoaded(str(written))), path)
        torch.jit.load(path)
    assert written.exists()  # torch alone would
    written.unlink()
    for read in (check_weights, load_backbone):
        with pytest.raises(BackboneError, match="has __setstate__, which would run while it is loaded"):
            read(ARCHITECTURE, str(path), image_size=SIZE)
    assert not written.exists()


def test_weights_that_claim_more_values_than_they_hold(tmp_path):
    torch.save({"logit_scale": torch.zeros(1).expand(10**13)}, tmp_path / "w.pt")
    for read in (check_weights, load_backbone):
        with pytest.raises(BackboneError, match="does not hold all values of logit_scale"):
            read(ARCHITECTURE, str(tmp_path / "w.pt"), image_size=SIZE)


def packed(path: Path) -> None:
    """Packs the content of an archive, as nobody but an attacker does."""
    content = path.read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))


@pytest.mark.slow
def test_a_zip_bomb(tmp_path, tiny_config):
    zeros = {"a": torch.zeros(100 * 2**20, dtype=torch.uint8)}
    torch.save(zeros, tmp_path / "w.pt")
    packed(tmp_path / "w.pt")
    with pytest.raises(BackboneError, match=r"would unpack to 1048\d+; torch does not compress tensors"):
        load_backbone(ARCHITECTURE, str(tmp_path / "w.pt"), image_size=SIZE)

    training = build_training(tiny_config, num_steps=10, device=torch.device("cpu"))
    save_checkpoint(tmp_path, training, tiny_config)
    (tmp_path / "w.pt").rename(tmp_path / "training.pt")
    with pytest.raises(CheckpointError, match="torch does not compress tensors"):
        restore_training(tmp_path, training)


def test_a_checkpoint_whose_weights_are_a_pickle(tmp_path, tiny_config):
    training = build_training(tiny_config, num_steps=10, device=torch.device("cpu"))
    save_checkpoint(tmp_path, training, tiny_config)
    torch.save({"a": Bomb(tmp_path / "exploded")}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model.safetensors cannot be read"):
        restore_training(tmp_path, training)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("vision", [{"timm_model_name": "hf-hub:somebody/model"}, {}])
def test_an_architecture_of_somebody_fetches_no_weights(vision, monkeypatch):
    """Of a text tower of the hub only its configuration is read, which cannot hold code."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    text = {} if vision else {"hf_model_name": "somebody/model"}
    changed = {
        **ARCHITECTURE,
        "vision_cfg": ARCHITECTURE["vision_cfg"] | vision,
        "text_cfg": ARCHITECTURE["text_cfg"] | text,
    }
    with pytest.raises(
        BackboneError, match=r"is no model of timm|its text tower somebody/model was not downloaded before"
    ):
        load_backbone(changed, None, image_size=SIZE)


NESTED = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
NESTED += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
NOT_PLAIN = {
    "!!python/object/apply:os.mkdir [exploded]": "could not determine a constructor",
    "!!python/name:os.system": "could not determine a constructor",
    f"{{{', '.join(NESTED)}}}": "expand to more than 10000 values",  # 10^12 of them
    "&a [*a]": "or contains itself",
    "[" * 500: "nested too deeply",
    "[" * 500 + "]" * 500: "nested too deeply",
    "9" * 5000: "limit",
    "2020-99-99": "month must be in",
    "{? !!set {a} : 1}": "unhashable",
}


@pytest.mark.parametrize(("value", "expected"), NOT_PLAIN.items(), ids=range(len(NOT_PLAIN)))
def test_yaml_that_is_not_plain(tmp_path, monkeypatch, value, expected):
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(f"name: {value}\n")
    for read in (load_config, load_sweep, load_robustness):
        with pytest.raises(ConfigError, match=expected):
            read(Path("config.yaml"))
    with pytest.raises(ConfigError, match=expected):
        parse_overrides([f"name={value}"])
    assert not Path("exploded").exists()


@pytest.mark.parametrize("name", ["../up", "/absolute", "a/b", ".hidden", "line\n", "nul\0", "-x", ""])
def test_names_that_would_leave_the_folder_of_runs(tmp_path, tiny_config, name):
    raw = tiny_config.model_dump(mode="json") | {"name": name}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(raw))
    with pytest.raises(ConfigError, match="name: "):
        load_config(tmp_path / "config.yaml")


def write_texts(path: Path, texts: pa.Array, **how: object) -> None:
    pq.write_table(
        pa.table({"video": texts, "caption": texts}), path, compression="zstd", write_statistics=False, **how
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["repeated", "many", "plain", "deltas"])
def test_a_parquet_bomb(tmp_path, monkeypatch, kind):
    path = tmp_path / "captions.parquet"
    if kind == "repeated":  # 2 TB
        indices = pa.array(np.zeros(1_000_000, np.int32))
        write_texts(path, pa.DictionaryArray.from_arrays(indices, pa.array(["x" * 1_000_000])))
    elif kind == "many":
        write_texts(path, pa.DictionaryArray.from_arrays(pa.array(np.zeros(21_000_000, np.int32)), pa.array(["x"])))
    else:  # one says what it is, the other does not
        monkeypatch.setattr("waver.data.annotations.table_files.parquet.MAX_BYTES", 2**25)
        encoding = {"plain": "PLAIN", "deltas": "DELTA_BYTE_ARRAY"}[kind]
        texts = pa.array([f"{'x' * 100_000}{number}" for number in range(400)])
        write_texts(path, texts, use_dictionary=False, column_encoding=dict.fromkeys(("video", "caption"), encoding))
    assert path.stat().st_size < 2**20
    before = memory_peak()
    with pytest.raises(AnnotationError, match=r"unpacks? to (more than )?\d+ MiB"):
        load_table(path, tmp_path, validation_fraction=0.1, validation_seed=0, allow_missing_videos=True)
    assert memory_peak() - before < 2**30


def memory_peak() -> int:
    """Bytes that this process ever took."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_captions_stored_as_deltas_are_read(tmp_path):
    (tmp_path / "a.mp4").touch()
    (tmp_path / "b.mp4").touch()
    table = pa.table({"video": ["a.mp4", "a.mp4", "b.mp4"], "caption": ["one", "one more", "two"]})
    encoding = {"column_encoding": {"video": "DELTA_BYTE_ARRAY", "caption": "DELTA_LENGTH_BYTE_ARRAY"}}
    pq.write_table(table, tmp_path / "captions.parquet", use_dictionary=False, **encoding)
    how = {"validation_fraction": 0.4, "validation_seed": 0, "allow_missing_videos": False}
    assert load_table(tmp_path / "captions.parquet", tmp_path, **how)["caption"].to_pylist() == [
        "one",
        "one more",
        "two",
    ]


def test_a_gzip_bomb(tmp_path, monkeypatch):
    monkeypatch.setattr("waver.data.annotations.reading.MAX_BYTES", 2**20)
    path, problems = tmp_path / "captions.json.gz", Problems()
    path.write_bytes(gzip.compress(json.dumps(["x" * 2**20]).encode()))
    assert read_json(path, problems) == (False, None)
    with pytest.raises(AnnotationError, match="it unpacks to more than 1 MiB"):
        problems.raise_if_any(path)


def encode(path: Path, width: int, height: int, num_frames: int) -> Path:
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"preset": "ultrafast", "x264-params": "threads=1:rc-lookahead=0:sync-lookahead=0"}
        frame = av.VideoFrame(width, height, "yuv420p")
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        for number in range(num_frames):
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.slow
def test_a_video_bomb_costs_one_clip(tmp_path):
    bomb, video = encode(tmp_path / "bomb.mp4", 4000, 4000, 4), encode(tmp_path / "video.mp4", 64, 48, 10)
    claim = (65535).to_bytes(2, "little") * 2
    (tmp_path / "claim.gif").write_bytes(
        b"GIF89a" + claim + b"\xf0" + bytes(8) + b"," + bytes(4) + claim + b"\0\x02\0;"
    )
    assert bomb.stat().st_size < 2**18
    with Decoder(
        timeout_s=60.0, memory_bytes=2**27
    ) as decoder:  # as 4 GiB to the largest frames of FFmpeg, 16,000 x 16,000
        for path in (bomb, tmp_path / "claim.gif"):
            with pytest.raises(ClipError) as caught:
                decoder.read_clip(path, **HOW)
            assert caught.value.status == "corrupt"
        assert decoder.read_clip(video, **HOW).frames.shape == (4, SIZE, SIZE, 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3.0,\n{secret}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile {secret.name}\n",
        "v=0\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
        '<?xml version="1.0"?><MPD></MPD>',
    ],
)
def test_a_video_that_names_other_files_does_not_open_them(tmp_path, text):
    secret = encode(tmp_path / "secret.ts", 64, 48, 30)
    (tmp_path / "video.mp4").write_text(text.format(secret=secret))
    with Decoder(timeout_s=60.0) as decoder, pytest.raises(ClipError) as caught:
        decoder.read_clip(tmp_path / "video.mp4", **HOW)
    assert caught.value.status == "no_video"
    assert "the file is a playlist" in caught.value.reason


@pytest.mark.parametrize("kind", ["size", "format"])
def test_a_frame_in_a_store_that_is_something_else(tmp_path, monkeypatch, kind):
    settings = StoreSettings(1.0, 2, SIZE, "jpeg")
    create_store(tmp_path, settings)
    value = io.BytesIO()
    # Pillow would open this by its content, whatever it is; for some formats it starts programs.
    Image.new("RGB", (3000, 3000) if kind == "size" else (SIZE, SIZE)).save(value, "JPEG" if kind == "size" else "PNG")
    monkeypatch.setattr("waver.data.clip_store_writer.encode_jpeg", lambda *_, **__: value.getvalue())
    clip = Clip(np.zeros((1, SIZE, SIZE, 3), np.uint8), (0.0,), 25.0, SIZE, SIZE, "test")
    write_block(tmp_path, settings, [DecodedClip("a", "a.mp4", 0.0, clip)])
    with pytest.raises(StoreError, match="3000 x 3000 pixels" if kind == "size" else "cannot identify image file"):
        ClipStore(tmp_path).read(["a"])


def test_nothing_is_written_through_a_link(tmp_path, monkeypatch):
    (tmp_path / "theirs").write_text("theirs")
    monkeypatch.setattr("waver.tools.files.uuid.uuid4", lambda: type("Known", (), {"hex": "0" * 32}))
    (tmp_path / "a.00000000.part").symlink_to(tmp_path / "theirs")
    with pytest.raises(FileExistsError), atomic_write(tmp_path / "a"):
        pass
    (tmp_path / "a").symlink_to(tmp_path / "theirs")
    with atomic_write(tmp_path / "a") as file:
        file.write(b"ours")
    assert (tmp_path / "theirs").read_text() == "theirs"
    assert (tmp_path / "a").read_text() == "ours"


def test_pages_show_captions_as_text(tmp_path):
    hostile = '<script>alert(1)</script><img src=x onerror="alert(1)">'
    write_html(tmp_path / "page.html", hostile, [html_table([hostile], [[hostile]])])
    page = (tmp_path / "page.html").read_text()
    assert "<img" not in page
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 4


def test_plots_show_names_as_text():
    figure, axes = new_figure(width=3.0, height=2.0)
    axes.plot([0, 1], label="$\\frac$")
    axes.set_yticks([0], ["$\\undefined$ <script>"])
    figure.legend()
    drawn = svg(figure)
    assert "<!-- $\\frac$ -->" in drawn
    assert "<script" not in drawn


@pytest.mark.slow
def test_what_can_run_code_stands_where_it_is_guarded():
    """What actors of waver send each other is pickled (on_ray/cluster/blocks.py), and nothing else."""
    calls: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                calls.setdefault(ast.unparse(node.func), set()).add(path.relative_to(PACKAGE).as_posix())
                if ast.unparse(node.func) == "torch.load":
                    assert "weights_only=True" in ast.unparse(node)
    assert {name: where for name, where in calls.items() if name in GUARDED} == GUARDED
    for name in (
        "eval",
        "exec",
        "pickle.load",
        "np.load",
        "os.system",
        "os.popen",
        "yaml.unsafe_load",
        "yaml.full_load",
    ):
        assert name not in calls
