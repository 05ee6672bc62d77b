"""The tables of flags in docs/yolov5.md say what the commands do with each flag."""

import re
import shlex

import pytest
from conftest import ROOT

import detect
import export
import options
import val
from utils import yolov5_flags
from utils.errors import UserError

DOC = (ROOT / "docs" / "yolov5.md").read_text(encoding="utf-8")
PARSERS = {
    "train.py": lambda words: options.parse_args(words)[0],
    "val.py": val.parse_args,
    "detect.py": detect.parse_args,
    "export.py": export.parse_args,
}
REQUIRED = {
    "train.py": [],
    "val.py": ["--weights", "w.pt"],
    "detect.py": ["--weights", "w.pt", "--source", "images"],
    "export.py": ["--weights", "w.pt"],
}
# The flags of YOLOv5 7.0 and of Ultralytics' default.yaml, as their commands have them.
YOLOV5 = {
    "train.py": """
        weights cfg data hyp epochs batch-size imgsz img img-size rect resume nosave noval
        noautoanchor noplots evolve evolve_population resume_evolve bucket cache image-weights
        device multi-scale single-cls optimizer sync-bn workers project name exist-ok quad
        cos-lr label-smoothing patience freeze save-period seed local_rank entity
        upload_dataset bbox_interval artifact_alias ndjson-console ndjson-file
    """,
    "val.py": """
        data weights batch-size imgsz img img-size conf-thres iou-thres max-det task device
        workers single-cls augment verbose save-txt save-hybrid save-conf save-json project
        name exist-ok half dnn
    """,
    "detect.py": """
        weights source data imgsz img img-size conf-thres iou-thres max-det device view-img
        save-txt save-format save-csv save-conf save-crop nosave classes agnostic-nms augment
        visualize update project name exist-ok line-thickness hide-labels hide-conf half dnn
        vid-stride
    """,
    "export.py": """
        data weights imgsz img img-size batch-size device half inplace keras optimize int8
        per-tensor dynamic cache simplify mlmodel opset verbose workspace nms agnostic-nms
        topk-per-class topk-all iou-thres conf-thres include
    """,
}
ULTRALYTICS = {
    "train.py": """
        model data epochs time patience batch imgsz save save_period cache device workers
        project name exist_ok pretrained optimizer seed deterministic single_cls rect cos_lr
        close_mosaic resume amp fraction freeze multi_scale compile overlap_mask mask_ratio
        dropout val plots lr0 lrf momentum weight_decay warmup_epochs warmup_momentum
        warmup_bias_lr box cls dfl nbs hsv_h hsv_s hsv_v degrees translate scale shear
        perspective flipud fliplr mosaic mixup copy_paste
    """,
    "val.py": """
        model data imgsz batch save_json conf iou max_det half device dnn plots rect split
        project name exist_ok augment agnostic_nms single_cls visualize classes
    """,
    "detect.py": """
        model source conf iou imgsz half device max_det vid_stride stream_buffer visualize
        augment agnostic_nms classes retina_masks embed project name exist_ok show save
        save_frames save_txt save_conf save_crop show_labels show_conf show_boxes line_width
        tracker
    """,
    "export.py": """
        model format imgsz keras optimize half int8 dynamic simplify opset workspace nms conf
        iou batch device data
    """,
}


def rows() -> list[tuple[str, str, str]]:
    """Return the command, the flag with its value and what the table says, of each flag."""
    result = []
    for section in DOC.split("\n### Flags of ")[1:]:
        command, _, text = section.partition("\n")
        for line in text.partition("\n## ")[0].splitlines():
            if line.startswith("| `"):
                flags, here = (cell.strip() for cell in line.strip("| ").split(" | "))
                result += [(command, flag, here) for flag in re.findall("`([^`]+)`", flags)]
    return result


def parse(command: str, flag: str) -> dict[str, object]:
    return vars(PARSERS[command]([*REQUIRED[command], *shlex.split(flag)]))


@pytest.mark.parametrize("command", PARSERS)
def test_table_of_flags_is_what_the_command_does(command):
    flags = [(flag, here) for name, flag, here in rows() if name == command]
    assert len(flags) > 20
    for flag, here in flags:
        if here == "the same":
            name = flag.split()[0].removeprefix("--").replace("-", "_")
            name = {"img": "imgsz", "batch": "batch_size"}.get(name, name)
            assert name in parse(command, flag)
        elif here.startswith("not needed"):
            assert parse(command, flag) == parse(command, "")
        elif re.fullmatch("`--[^`]+`", here):
            assert parse(command, flag) == parse(command, here.strip("`")) != parse(command, "")
        else:
            with pytest.raises(UserError) as raised:
                parse(command, flag)
            assert str(raised.value) == f"{flag}: {here} (docs/yolov5.md)"


def test_every_answer_is_in_the_table():
    listed = {(command, flag) for command, flag, _ in rows()}
    for command, answers in yolov5_flags.ANSWERS.items():
        assert {(command, flag) for flags in answers for flag in flags} <= listed


@pytest.mark.parametrize("command", PARSERS)
@pytest.mark.parametrize("tool", [YOLOV5, ULTRALYTICS], ids=["YOLOv5", "Ultralytics"])
def test_no_flag_of_theirs_is_unknown(tool, command):
    values = {"task": "test", "split": "test", "include": "onnx", "format": "onnx", "amp": "off"}
    values |= dict.fromkeys(("conf", "iou", "conf-thres", "iou-thres"), "0.5")
    values |= {"model": "yolo-n"}
    for name in tool[command].split():
        for words in ([], [values.get(name, "64")]):  # a flag without a value, or with one
            try:
                parse(command, shlex.join([f"--{name}", *words]))
                break
            except UserError as error:
                if str(error).endswith("(docs/yolov5.md)"):
                    break
                message = error
        else:
            pytest.fail(f"{command} --{name}: {message}")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data=coco.yaml", "epochs=3"], "data=coco.yaml: write --data coco.yaml (docs/yolov5.md)"),
        (["--lr0", "0.1"], "--lr0: a key of the hyp file; copy hyp/hyp.yaml"),
        (["--hsv_h", "0.1"], "--hsv-h: a key of YOLOv5's hyp file, which `python -m utils.from"),
        (["--evolve_population=x"], "--evolve-population: there is no search"),
        (["--conf-thres"], "unrecognized arguments: --conf-thres"),
    ],
)
def test_answers_to_other_spellings(words, message):
    with pytest.raises(UserError) as raised:
        options.parse_args(words)
    assert str(raised.value).startswith(message)


def test_values_are_left_alone():
    words = ["--name=-x", "--project", "a_b=c", "--hyp=my_hyp.yaml", "--weights="]
    args, overrides = options.parse_args(words)
    assert (args.name, args.project, args.hyp, args.weights) == ("-x", "a_b=c", "my_hyp.yaml", None)
    assert overrides.keys() == {"name", "project", "hyp", "weights"}


def test_own_flag_goes_before_an_answer():
    """A fork that adds `--mosaic` gets its flag, though a key of the hyp file has the name."""
    parser = options.build_parser()
    parser.add_argument("--mosaic", type=float)
    assert parser.parse_args(["--mosaic", "0.5"]).mosaic == 0.5
