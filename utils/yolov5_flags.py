"""Flags of YOLOv5's and Ultralytics' commands: what each is called here, or what is here instead.

docs/yolov5.md has the same as a table.
"""

from collections.abc import Container, Mapping, Sequence

from utils.errors import UserError

Answers = Mapping[tuple[str, ...], str]

# Of each command: a flag, or a flag and its value -> the words that mean the same here; without
# any, the flag asks for what is done anyway.
SAME: dict[str, dict[str, tuple[str, ...]]] = {
    "train.py": {
        "--img-size": ("--imgsz",),
        "--batch-size -1": ("--batch-size", "auto"),
        "--batch -1": ("--batch-size", "auto"),
    },
    "val.py": {
        "--img-size": ("--imgsz",),
        "--conf-thres": ("--conf",),
        "--iou-thres": ("--iou",),
        "--task": ("--split",),
        "--model": ("--weights",),
        "--verbose": (),
        "--plots": (),
    },
    "detect.py": {
        "--img-size": ("--imgsz",),
        "--conf-thres": ("--conf",),
        "--iou-thres": ("--iou",),
        "--model": ("--weights",),
        "--save-conf": (),
    },
    "export.py": {
        "--img-size": ("--imgsz",),
        "--conf-thres": ("--conf",),
        "--iou-thres": ("--iou",),
        "--model": ("--weights",),
        "--include": ("--format",),
        "--simplify": (),
    },
}

_NO_TTA = "test-time augmentation is not available"
_PRECISION = "the network computes in the precision in which the hardware is fastest"
_CHECKPOINTS_ONLY = "`--weights` is a checkpoint of this repository"
_BOXES_ONLY = "not available: this repository detects boxes"
_FILES_ONLY = "results are written to `--project`; there is no window"
_LOOKS = "not available: labels, scores and line widths are always drawn alike"

# Of each command: flags that it does not take -> what is here instead. Flags are spelled with a
# dash for an underscore; one may have a value, and is then answered with this value only.
ANSWERS: dict[str, Answers] = {
    "train.py": {
        ("--cfg",): "the model is named by `--model yolo-n`; its architecture is models/yolo.py",
        ("--optimizer",): "`optimizer` in the hyp file: muon, adamw or sgd",
        ("--cos-lr",): "the learning rate is the `scheduler` block of the hyp file; "
        "`--hyp cosine.yaml` is a cosine",
        ("--multi-scale",): "`--imgsz 320-960` is the range of sizes for the batches",
        ("--label-smoothing",): "not available: class targets are soft already, by how well a "
        "prediction fits its object",
        ("--image-weights",): "images are not sampled by class; `class_weights` in the hyp file "
        "weights the loss of each class",
        ("--rect", "--quad"): "not available: training images are squares; validation pads to the "
        "smallest rectangle",
        ("--evolve", "--evolve-population", "--resume-evolve"): "there is no search for "
        "hyperparameters",
        ("--noautoanchor",): "the model has no anchors",
        ("--nosave", "--save"): "best.pt and last.pt are always written; `--save-period N` adds "
        "epochN.pt",
        ("--val",): "every epoch is validated; `--noval` validates after the last one only",
        ("--plots",): "plots are always drawn; `--noplots` skips them",
        ("--freeze 0",): "`--freeze N` freezes the first N layers, at least 1; a list of layers is "
        "not taken",
        ("--local-rank",): "`torchrun --nproc_per_node N train.py` starts several processes",
        ("--bucket",): "a run is written to `--project` only",
        ("--entity", "--upload-dataset", "--bbox-interval", "--artifact-alias"): "`--tensorboard` "
        "writes what wandb, MLflow and ClearML read",
        ("--ndjson-console", "--ndjson-file"): "results.csv has the numbers of each epoch",
        ("--time",): "a run has a number of `--epochs`; `--resume` continues one that was stopped",
        ("--fraction",): "`train` in data.yaml can be a .txt list of some of the images",
        ("--nbs",): "`accumulate` in the hyp file is the number of batches in an optimizer step",
        ("--overlap-mask", "--mask-ratio", "--dropout"): _BOXES_ONLY,
    },
    "val.py": {
        ("--task speed",): "val.py always prints the milliseconds for each image",
        ("--task study",): "call val.py once for each `--imgsz`",
        ("--single-cls",): "the checkpoint says whether it was trained with `--single-cls`",
        ("--max-det",): "the 100 best detections of an image count, as in COCO, or as many as the "
        "image with the most objects has",
        ("--augment",): _NO_TTA,
        ("--save-txt", "--save-hybrid", "--save-conf"): "`--save-json` writes boxes and scores; "
        "`detect.py --save-txt` writes label files",
        ("--half",): _PRECISION,
        ("--dnn",): _CHECKPOINTS_ONLY,
        ("--rect",): "images are padded to the smallest rectangle that holds each of them",
        ("--classes",): "all classes are evaluated; metrics.json has the metrics of each",
        ("--agnostic-nms",): "NMS is done within each class",
        ("--visualize",): "not available; the best and the worst images are in a run's report.html",
    },
    "detect.py": {
        ("--data",): "the class names are in the checkpoint",
        ("--max-det",): "an image has up to 300 detections",
        ("--view-img", "--show"): _FILES_ONLY,
        ("--save-csv", "--save-format"): "`--save-json` writes all boxes, in pixels",
        ("--save-crop", "--save-frames"): "not available; `--save-json` has the boxes, in pixels",
        ("--nosave", "--save"): "images and videos with their boxes are always written",
        ("--agnostic-nms",): "NMS is done within each class",
        ("--augment",): _NO_TTA,
        ("--visualize", "--embed"): "not available; `load` in hubconf.py gives the torch module",
        ("--update",): _CHECKPOINTS_ONLY,
        (
            *("--line-thickness", "--line-width", "--hide-labels", "--hide-conf"),
            *("--show-labels", "--show-conf", "--show-boxes"),
        ): _LOOKS,
        ("--half",): _PRECISION,
        ("--dnn",): _CHECKPOINTS_ONLY,
        ("--vid-stride", "--stream-buffer"): "every frame of a video is processed",
        ("--retina-masks",): _BOXES_ONLY,
        ("--tracker",): "objects are not tracked from frame to frame",
    },
    "export.py": {
        ("--data",): "the class names are in the checkpoint",
        ("--device",): "the export runs on the CPU; the exported file runs on any device",
        ("--opset",): "the opset is the one that torch.onnx writes, and is printed",
        ("--include engine", "--format engine"): "TensorRT reads the file of `--format onnx`",
        ("--include openvino", "--format openvino"): "OpenVINO reads the file of `--format onnx`",
        ("--int8", "--per-tensor", "--optimize", "--workspace", "--cache"): "not available: "
        "quantize or tune the exported file with the tools of its runtime",
        ("--keras", "--mlmodel", "--topk-per-class", "--topk-all"): "for formats that are not "
        "written here",
        ("--agnostic-nms",): "NMS is done within each class",
        ("--inplace", "--verbose"): "not available, and not needed",
    },
}
HYP_ANSWER = "a key of the hyp file; copy hyp/hyp.yaml, change it, and give the copy as `--hyp`"
YOLOV5_HYP_ANSWER = "a key of YOLOv5's hyp file, which `python -m utils.from_yolov5` converts"


def translate(command: str, words: Sequence[str], own: Container[str] = ()) -> list[str]:
    """Return the arguments `words` of `command` with the flags of YOLOv5 and Ultralytics as ours.

    `own` are the flags that the command has. Raises UserError with the answer for one of theirs
    that it does not have.
    """
    same, answers = SAME.get(command, {}), _answers(command)
    if answers and words and _is_assignment(words[0]):
        key, _, value = words[0].partition("=")
        raise UserError(f"{words[0]}: write --{key.replace('_', '-')} {value} (docs/yolov5.md)")
    result: list[str] = []
    rest = [part for word in words for part in _flag_and_value(word)]
    while rest:
        flag = rest.pop(0)
        with_value = f"{flag} {rest[0]}" if rest else flag
        for key in (with_value, *([] if flag in own else [flag])):
            if key in answers:
                raise UserError(f"{key}: {answers[key]} (docs/yolov5.md)")
            if key in same:
                result += same[key]
                rest = rest[key.count(" ") :]
                break
        else:
            result.append(flag)
    return result


def _flag_and_value(word: str) -> list[str]:
    """Return `--save_conf` as --save-conf, and `--conf=0.5` as two words; others as they are."""
    if not word.startswith("--"):
        return [word]
    name, equals, value = word.partition("=")
    name = name.replace("_", "-")
    if value.startswith("-") and not value[1:].isdecimal():  # as two words it would be a flag
        return [f"{name}={value}"]
    return [name, *([value] if equals else [])]


def _is_assignment(word: str) -> bool:
    name, equals, _ = word.partition("=")
    return bool(equals) and name.replace("_", "").isalnum()


def _answers(command: str) -> dict[str, str]:
    """Return the answers of `command` by flag."""
    answers = {flag: text for flags, text in ANSWERS.get(command, {}).items() for flag in flags}
    if command == "train.py":
        from utils.hyp import YOLOV5_KEYS, Hyp  # here, for the other commands do without

        for keys, text in ((Hyp.model_fields, HYP_ANSWER), (YOLOV5_KEYS, YOLOV5_HYP_ANSWER)):
            flags = [f"--{key.replace('_', '-')}" for key in keys]
            answers = dict.fromkeys(flags, text) | answers
    return answers
