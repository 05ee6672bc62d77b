"""Writes the dataset of `dataset.py` with the export functions of annotation tools.

Each writer makes an export in an empty directory, as the tool lays it out, and returns the content
of a data.yaml for it, or None where the tool writes one that is complete. A library is imported
where it is used, so that a missing one costs only its own exports.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from interop.dataset import NAMES, TRUTH, Loss, Object, Picture, draw
from PIL import Image, ImageDraw

Keys = dict[str, Any]  # of a data.yaml

# Float32 fractions, or at least two digits after the point in pixels or five in fractions.
EXACT = 0.01


@dataclass(frozen=True)
class Export:
    """An export: the tool that makes it, its format, and what of the dataset it does not keep."""

    package: str  # on PyPI
    format: str
    write: Callable[[Path], Keys | None]
    loss: Loss

    @property
    def name(self) -> str:
        """Tool and format, as a file name."""
        return f"{self.package} {self.format}".replace(" ", "_")


def _draw_split(directory: Path, split: str) -> dict[str, Picture]:
    for name, source in TRUTH[split].items():
        draw(directory / name, source)
    return TRUTH[split]


def _sources(**keys: str) -> Keys:
    """Return a data.yaml whose splits have the keys of a source, with {} for the split."""
    splits = {split: {key: value.format(split) for key, value in keys.items()} for split in TRUTH}
    return splits | {"names": NAMES}


def _mask(o: Object, source: Picture) -> np.ndarray:
    """Return the pixels (height, width) bool of an object, to the nearest."""
    x1, y1, x2, y2 = o.box
    points = o.points
    if not o.is_polygon:  # its corners are pixels that belong to it
        points = (x1, y1), (x2 - 1, y1), (x2 - 1, y2 - 1), (x1, y2 - 1)
    image = Image.new("1", (source.width, source.height))
    ImageDraw.Draw(image).polygon([(round(x), round(y)) for x, y in points], fill=1)
    return np.asarray(image)


# datumaro


def _datumaro(root: Path, format: str, with_size: bool = True, **options: object) -> None:
    import datumaro as dm

    items = []
    for split in TRUTH:
        for name, source in _draw_split(root / "source", split).items():
            size = (source.height, source.width) if with_size else None
            items.append(
                dm.DatasetItem(
                    id=Path(name).stem,
                    subset=split,
                    media=dm.Image.from_file(path=str(root / "source" / name), size=size),
                    annotations=[
                        _datumaro_object(o, _mask(o, source), format) for o in source.objects
                    ],
                )
            )
    dataset = dm.Dataset.from_iterable(items, categories=NAMES)
    dataset.export(str(root), format, save_media=True, **options)
    shutil.rmtree(root / "source")


def _datumaro_object(o: Object, mask: np.ndarray, format: str) -> Any:
    import datumaro as dm

    label = NAMES.index(o.name)
    flags = {"is_crowd": True, "difficult": True} if o.is_crowd else {}
    if o.is_crowd and format == "coco_instances":  # its COCO crowds are masks
        return dm.Mask(mask, label=label, attributes=flags)
    if o.is_polygon:
        return dm.Polygon(np.ravel(o.points).tolist(), label=label, attributes=flags)
    x1, y1, x2, y2 = o.box
    return dm.Bbox(x1, y1, x2 - x1, y2 - y1, label=label, attributes=flags)


def datumaro_coco(root: Path) -> Keys:
    _datumaro(root, "coco_instances")
    return _sources(annotations="annotations/instances_{}.json", images="images/{}")


def datumaro_voc(root: Path, **options: object) -> Keys:
    labels = {name: [None, [], []] for name in ["background", *NAMES]}
    _datumaro(root, "voc_detection", label_map=labels, **options)
    return _sources(
        annotations="Annotations", images="JPEGImages", image_set="ImageSets/Main/{}.txt"
    )


def datumaro_voc_one_based(root: Path) -> Keys:
    return datumaro_voc(root, coordinate_mode="voc-one-based")


def datumaro_voc_no_size(root: Path) -> Keys:
    return datumaro_voc(root, with_size=False)


def datumaro_yolo(root: Path) -> Keys:
    _datumaro(root, "yolo")
    return {"train": "train.txt", "val": "val.txt", "names": NAMES}


def datumaro_ultralytics(root: Path) -> None:
    _datumaro(root, "yolo_ultralytics")


def datumaro_labelme(root: Path) -> Keys:
    _datumaro(root, "label_me")
    return _sources(annotations="Annotations/{}", images="Images/{}")


# supervision


def _supervision(root: Path, split: str, with_masks: bool = False) -> Any:
    import supervision as sv

    annotations = {}
    for name, source in _draw_split(root / "source", split).items():
        objects = source.objects
        masks = [_mask(o, source) for o in objects]
        annotations[str(root / "source" / name)] = (
            sv.Detections(
                xyxy=np.array([o.box for o in objects]),
                class_id=np.array([NAMES.index(o.name) for o in objects]),
                data={"iscrowd": np.array([int(o.is_crowd) for o in objects])},
                mask=np.array(masks) if with_masks else None,
            )
            if objects
            else sv.Detections.empty()
        )
    return sv.DetectionDataset(NAMES, [*annotations], annotations)


def supervision_coco(root: Path, with_masks: bool = False) -> Keys:
    for split in TRUTH:
        _supervision(root, split, with_masks).as_coco(
            images_directory_path=str(root / split),
            annotations_path=str(root / split / "_annotations.coco.json"),
            approximation_percentage=0.75,  # of the points of a mask's polygon
        )
        shutil.rmtree(root / "source")
    return _sources(annotations="{}/_annotations.coco.json", images="{}")


def supervision_coco_masks(root: Path) -> Keys:
    return supervision_coco(root, with_masks=True)


def supervision_voc(root: Path) -> Keys:
    for split in TRUTH:
        _supervision(root, split).as_pascal_voc(
            images_directory_path=str(root / split / "images"),
            annotations_directory_path=str(root / split / "annotations"),
        )
        shutil.rmtree(root / "source")
    return _sources(annotations="{}/annotations", images="{}/images")


def supervision_yolo(root: Path, with_masks: bool = False) -> Keys:
    for split in TRUTH:
        _supervision(root, split, with_masks).as_yolo(
            images_directory_path=str(root / split / "images"),
            annotations_directory_path=str(root / split / "labels"),
            data_yaml_path=str(root / "data.yaml"),
        )
        shutil.rmtree(root / "source")
    # What it writes are nc and names.
    keys = yaml.safe_load((root / "data.yaml").read_text())
    return keys | {"train": "train/images", "val": "val/images"}


def supervision_yolo_masks(root: Path) -> Keys:
    return supervision_yolo(root, with_masks=True)


def supervision_labelme(root: Path) -> Keys:
    for split in TRUTH:
        _supervision(root, split).as_labelme(
            images_directory_path=str(root / split),
            annotations_directory_path=str(root / split),
        )
        shutil.rmtree(root / "source")
    return _sources(annotations="{}", images="{}")


# labelme


def labelme_json(root: Path) -> Keys:
    from labelme import LabelFile

    for split in TRUTH:
        for name, source in _draw_split(root / split, split).items():
            image = root / split / name
            LabelFile().save(
                filename=str(image.with_suffix(".json")),
                shapes=[
                    {
                        "label": o.name,
                        "points": [list(point) for point in o.points],
                        "group_id": None,
                        "description": "",
                        "shape_type": "polygon" if o.is_polygon else "rectangle",
                        "flags": {},
                        "mask": None,
                    }
                    for o in source.objects
                ],
                image_path=name,
                image_height=source.height,
                image_width=source.width,
                # The tool does this unless "Save With Image Data" is off.
                image_data=image.read_bytes() if name == "empty.png" else None,
            )
    return _sources(annotations="{}", images="{}")


def labelme_coco(root: Path) -> Keys:
    import labelme2coco

    labelme_json(root)
    for split in TRUTH:
        labelme2coco.convert(str(root / split), str(root / f"{split}_coco"))
    return _sources(annotations="{}_coco/dataset.json", images="{}")


# pycocotools


def _pycocotools(root: Path, split: str, with_bbox: bool) -> None:
    from pycocotools import mask
    from pycocotools.coco import COCO

    images, annotations = [], []
    for image_id, (name, source) in enumerate(_draw_split(root / split, split).items()):
        images.append(
            {"id": image_id, "file_name": name, "width": source.width, "height": source.height}
        )
        for o in source.objects:
            x1, y1, x2, y2 = o.box
            points = o.points if o.is_polygon else ((x1, y1), (x2, y1), (x2, y2), (x1, y2))
            flat = [value for point in points for value in point]
            bits = mask.decode(mask.frPyObjects([flat], source.height, source.width))[..., 0]
            rle = mask.encode(np.asfortranarray(bits))
            annotation = {
                "id": len(annotations) + 1,
                "image_id": image_id,
                "category_id": NAMES.index(o.name) + 1,
                "segmentation": rle | {"counts": rle["counts"].decode()},
                "area": float(mask.area(rle)),
                "iscrowd": int(o.is_crowd),
            }
            if with_bbox:
                annotation["bbox"] = mask.toBbox(rle).tolist()
            annotations.append(annotation)
    coco = COCO()
    coco.dataset = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(NAMES, 1)],
    }
    coco.createIndex()
    path = root / f"{split}.json"
    path.write_text(json.dumps(coco.dataset))
    path.write_text(json.dumps(COCO(str(path)).dataset))


def pycocotools_masks(root: Path, with_bbox: bool = True) -> Keys:
    for split in TRUTH:
        _pycocotools(root, split, with_bbox)
    return _sources(annotations="{}.json", images="{}")


def pycocotools_masks_only(root: Path) -> Keys:
    return pycocotools_masks(root, with_bbox=False)


# label-studio-sdk

LABEL_CONFIG = """
<View>
  <Image name="image" value="$image"/>
  <RectangleLabels name="label" toName="image">{labels}</RectangleLabels>
  <PolygonLabels name="polygon" toName="image">{labels}</PolygonLabels>
</View>
"""


def _label_studio_tasks(root: Path, split: str, url: str) -> Path:
    """Save a split's images as Label Studio stores uploads, and its export of tasks as json."""
    tasks = []
    for number, (name, source) in enumerate(TRUTH[split].items(), 1):
        stored = f"0a1b2c3d-{name}"
        draw(root / "upload" / "1" / stored, source)
        results = [_label_studio_result(o, source) for o in source.objects]
        tasks.append(
            {
                "id": number,
                "data": {"image": url.format(stored)},
                "annotations": [{"id": number, "completed_by": 1, "result": results}],
            }
        )
    path = root / "tasks.json"
    path.write_text(json.dumps(tasks))
    return path


def _label_studio_result(o: Object, source: Picture) -> dict[str, Any]:
    x1, y1, x2, y2 = o.box
    if o.is_polygon:
        points = [[x / source.width * 100, y / source.height * 100] for x, y in o.points]
        kind, value = "polygonlabels", {"points": points, "closed": True}
    else:
        kind = "rectanglelabels"
        value = {
            "x": x1 / source.width * 100,
            "y": y1 / source.height * 100,
            "width": (x2 - x1) / source.width * 100,
            "height": (y2 - y1) / source.height * 100,
            "rotation": 0,
        }
    return {
        "type": kind,
        "from_name": "polygon" if o.is_polygon else "label",
        "to_name": "image",
        "original_width": source.width,
        "original_height": source.height,
        "value": value | {kind: [o.name]},
    }


def _label_studio(root: Path, format: str, url: str = "/data/upload/1/{}") -> None:
    from label_studio_sdk.converter import Converter

    labels = "".join(f'<Label value="{name}"/>' for name in NAMES)
    for split in TRUTH:
        tasks = _label_studio_tasks(root, split, url)
        converter = Converter(
            LABEL_CONFIG.format(labels=labels),
            str(root),
            upload_dir=str(root / "upload"),
            local_files_resolver=lambda path: str(root / "upload" / "1" / path),
        )
        converter.convert(str(tasks), str(root / split), format, is_dir=False)
        tasks.unlink()
        shutil.rmtree(root / "upload")


def label_studio_coco(root: Path) -> Keys:
    _label_studio(root, "COCO_WITH_IMAGES")
    return _sources(annotations="{}/result.json", images="{}/images")


def label_studio_coco_local(root: Path) -> Keys:
    _label_studio(root, "COCO_WITH_IMAGES", "/data/local-files/?d={}")
    return _sources(annotations="{}/result.json", images="{}")


def label_studio_voc(root: Path) -> Keys:
    _label_studio(root, "VOC")
    return _sources(annotations="{}/Annotations", images="{}/images")


def label_studio_yolo(root: Path) -> Keys:
    _label_studio(root, "YOLO_WITH_IMAGES")
    names = (root / "train" / "classes.txt").read_text(encoding="utf-8").splitlines()
    return {"train": "train/images", "val": "val/images", "names": names}


# labelImg


def _labelimg(root: Path, format: str, suffix: str) -> None:
    from libs.pascal_voc_io import PascalVocWriter
    from libs.yolo_io import YOLOWriter

    writer_class = {"VOC": PascalVocWriter, "YOLO": YOLOWriter}[format]
    for split in TRUTH:
        for name, source in _draw_split(root / split, split).items():
            image = root / split / name
            shape = np.asarray(Image.open(image)).shape
            writer = writer_class(split, name, shape, local_img_path=str(image))
            for o in source.objects:
                # Its canvas has whole pixels, and 0 becomes 1.
                box = (max(1, int(value)) for value in o.box)
                writer.add_bnd_box(*box, o.name, o.is_crowd)
            path = str(image.with_suffix(suffix))
            if format == "YOLO":
                writer.save(class_list=[*NAMES], target_file=path)
            else:
                writer.save(target_file=path)


def labelimg_voc(root: Path) -> Keys:
    _labelimg(root, "VOC", ".xml")
    return _sources(annotations="{}", images="{}")


def labelimg_yolo(root: Path) -> Keys:
    _labelimg(root, "YOLO", ".txt")
    names = (root / "train" / "classes.txt").read_text(encoding="utf-8").splitlines()
    return {"train": "train", "val": "val", "names": names}


CROWD_AS_OBJECTS = Loss(EXACT, crowd_as_objects=True)
YOLO_BOXES_ONLY = Loss(EXACT, no_polygons=True, no_crowd=True)

EXPORTS = [
    Export("datumaro", "COCO", datumaro_coco, Loss(EXACT)),
    # Floats that count from 0, where VOC counts from 1.
    Export("datumaro", "VOC", datumaro_voc, Loss(1 + EXACT, no_polygons=True)),
    # As it is where nothing has opened the images.
    Export(
        "datumaro", "VOC without sizes", datumaro_voc_no_size, Loss(1 + EXACT, no_polygons=True)
    ),
    # Whole pixels: low sides are rounded down, high sides up.
    Export("datumaro", "VOC from 1", datumaro_voc_one_based, Loss(1, no_polygons=True)),
    Export("datumaro", "LabelMe xml", datumaro_labelme, CROWD_AS_OBJECTS),
    Export("datumaro", "YOLO", datumaro_yolo, YOLO_BOXES_ONLY),
    Export("datumaro", "YOLO Ultralytics", datumaro_ultralytics, YOLO_BOXES_ONLY),
    Export("supervision", "COCO", supervision_coco, Loss(EXACT)),
    Export("supervision", "COCO masks", supervision_coco_masks, Loss(EXACT)),
    # Whole pixels, to the nearest.
    Export("supervision", "VOC", supervision_voc, Loss(0.5 + EXACT, crowd_as_objects=True)),
    Export("supervision", "YOLO", supervision_yolo, CROWD_AS_OBJECTS),
    # Masks have whole pixels, and their polygons end at the last of them, not behind it.
    Export("supervision", "YOLO masks", supervision_yolo_masks, Loss(1.5, crowd_as_objects=True)),
    Export("supervision", "labelme json", supervision_labelme, CROWD_AS_OBJECTS),
    Export("labelme", "labelme json", labelme_json, CROWD_AS_OBJECTS),
    Export("labelme2coco", "COCO", labelme_coco, CROWD_AS_OBJECTS),
    # A mask has whole pixels.
    Export("pycocotools", "COCO masks", pycocotools_masks, Loss(1)),
    Export("pycocotools", "COCO masks without bbox", pycocotools_masks_only, Loss(1)),
    Export("label-studio-sdk", "COCO", label_studio_coco, CROWD_AS_OBJECTS),
    Export("label-studio-sdk", "COCO local files", label_studio_coco_local, CROWD_AS_OBJECTS),
    # Low sides and lengths are cut to whole pixels that count from 0. Images without objects get
    # no xml.
    Export(
        "label-studio-sdk",
        "VOC",
        label_studio_voc,
        Loss(2, no_polygons=True, crowd_as_objects=True, no_empty=True),
    ),
    Export("label-studio-sdk", "YOLO", label_studio_yolo, CROWD_AS_OBJECTS),
    # Whole pixels that count from 0, rounded down; 0 is written as 1. It has boxes only.
    Export("labelImg", "VOC", labelimg_voc, Loss(2)),
    Export("labelImg", "YOLO", labelimg_yolo, Loss(1 + EXACT, crowd_as_objects=True)),
]
