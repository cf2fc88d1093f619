"""Selecting the files of a folder to pack, with their sets and labels, by the folders, the manifest
and the options.

Files that are left out, or not treated as their folder suggests, are in ``refused`` or ``notes``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import assert_never

from ssl_vit.errors import UserError
from ssl_vit_data_prep.class_names import ClassTable, describe_missing
from ssl_vit_data_prep.layout import (
    Layout,
    class_name,
    count_folders,
    count_of,
    find_layout,
    list_some,
    set_of_word,
)
from ssl_vit_data_prep.manifest import Manifest, match_files, read_manifest
from ssl_vit_data_prep.plan import Classes, Division, no_classes
from ssl_vit_data_prep.refusals import Refusal
from ssl_vit_data_prep.scan import ImageFile, Scan
from ssl_vit_data_prep.shard_writer import PackOptions

# Usual names of a column of labels, the likeliest first.
_LABEL_NAMES = ("class", "labels", "class_name", "target", "category", "species", "y")


@dataclass(frozen=True)
class Selection:
    """The files that are packed."""

    files: list[ImageFile]
    classes: Classes
    division: Division = field(default_factory=Division)
    refused: list[Refusal] = field(default_factory=list)
    notes: tuple[str, ...] = ()
    """Notes for the summary."""


def select(scan: Scan, images: Path, options: PackOptions) -> Selection:
    """Select the files of a pack from those that were found.

    Raises:
        UserError: The manifest, the folders or the options contradict themselves or each other.
    """
    match options.classes:
        case "manifest":
            chosen = _by_manifest(scan, images, options)
        case "folders" | "none":
            chosen = _by_folders(scan, options)
        case _:
            assert_never(options.classes)
    if options.val_fraction and "val" in chosen.division.sets.values():
        if column := options.columns.split:
            raise UserError(
                f"--val-fraction is given, but the column {column} already assigns images to val",
                "leave out --val-fraction or --split-column",
            )
        raise UserError(
            "--val-fraction is given, but there already is a folder of images for val",
            "leave out --val-fraction, or add --no-split-folders",
        )
    return replace(chosen, refused=[*chosen.refused, *scan.refused])


def classes_of_folders(files: Sequence[ImageFile], layout: Layout) -> Classes:
    """The classes of the folders that hold images at the level of classes, sorted; images beside
    them have no label.
    """
    found = {file.path: name for file in files if (name := layout.class_of(file.path))}
    names = tuple(sorted(set(found.values())))
    if len(names) == 1 and 2 * len(found) <= len(files):
        return no_classes()  # a folder of images with one sub-folder
    numbers = {name: number for number, name in enumerate(names)}
    return Classes(names, {path: numbers[name] for path, name in found.items()}, {})


def _by_folders(scan: Scan, options: PackOptions) -> Selection:
    layout = find_layout(count_folders(file.path for file in scan.files), options.split_folders)
    files, sets, refused = _split_by_folders(scan.files, layout)
    division = Division(options.val_fraction, sets)
    if options.classes == "none":
        notes = layout.notes if sets else ()
        return Selection(files, no_classes(), division, refused, notes)
    classes = classes_of_folders(files, layout)
    notes = (*layout.notes, *_folder_notes(scan, files, classes, layout))
    return Selection(files, classes, division, refused, notes)


def _by_manifest(scan: Scan, images: Path, options: PackOptions) -> Selection:
    assert options.manifest is not None
    manifest = read_manifest(options.manifest, images, options.columns)
    line_of, refused = match_files(scan.files, manifest)
    files = [file for file in scan.files if file.path in line_of]
    if not files:
        raise UserError(
            f"no image of {images} is listed in {options.manifest}",
            f"paths are relative to {images}, such as {scan.files[0].path}",
        )
    notes: tuple[str, ...] = ()
    if options.columns.split:
        sets = {path: manifest.sets[line] for path, line in line_of.items()}
    else:
        layout = find_layout(count_folders(line_of), options.split_folders)
        files, sets, in_no_set = _split_by_folders(files, layout)
        refused += in_no_set
        notes = layout.notes if sets else ()
    labels = {file.path: manifest.labels[line_of[file.path]] for file in files}
    table = manifest.class_table()
    classes = Classes(
        tuple(manifest.classes()),
        {path: table.numbers[label] for path, label in labels.items() if label},
        {
            path: manifest.extras[line]
            for path, line in line_of.items()
            if line in manifest.extras and path in labels
        },
    )
    groups = {path: group for path, line in line_of.items() if (group := manifest.groups.get(line))}
    notes = (*notes, *_manifest_notes(manifest, table, files, groups, options))
    return Selection(files, classes, Division(options.val_fraction, sets, groups), refused, notes)


def _split_by_folders(
    files: Sequence[ImageFile], layout: Layout
) -> tuple[list[ImageFile], dict[str, str], list[Refusal]]:
    """The files that are in a set, the set of each, and refusals of the others."""
    if not layout.set_folders:
        return list(files), {}, []
    sets = {file.path: name for file in files if (name := layout.set_of(file.path))}
    folders = ", ".join(f"{layout.base}{name}/" for name in layout.set_folders)
    reason = f"not in {folders}"
    refused = [Refusal(file.path, "in no set", reason) for file in files if file.path not in sets]
    return [file for file in files if file.path in sets], sets, refused


def _folder_notes(
    scan: Scan, files: Sequence[ImageFile], classes: Classes, layout: Layout
) -> list[str]:
    notes = []
    outside = [file.path for file in files if file.path not in classes.labels]
    if outside and classes.names:
        notes.append(
            f"{count_of(len(outside), 'image')} beside the class folders, without a label: "
            f"{list_some(outside)}"
        )
    elif 0 < (beside := sum(not layout.class_of(path) for path in outside)) < len(outside):
        notes.append(
            f"no classes: there is one folder, with {count_of(len(outside) - beside, 'image')}, "
            f"beside {count_of(beside, 'image')}"
        )
    holding = {folder for file in scan.files for folder in _folders_above(file.path)}
    bare = [folder for folder in scan.folders if folder not in holding]
    if sets := [f"{folder}/" for folder in bare if _is_set_folder(folder, layout)]:
        notes.append(f"no images in {list_some(sets)}: no such set is made")
    names = {
        class_name(f"{folder.rpartition('/')[2]}/")
        for folder in bare
        if layout.holds_classes(folder)
    }
    if classes.names and (dropped := sorted(names - set(classes.names))):
        notes.append(
            f"{count_of(len(dropped), 'folder')} without images, so not classes: "
            f"{list_some(dropped)}"
        )
    return notes


def _is_set_folder(folder: str, layout: Layout) -> bool:
    name = folder.removeprefix(layout.base)
    return bool(layout.set_folders) and "/" not in name and bool(set_of_word(name))


def _folders_above(path: str) -> list[str]:
    parts = path.split("/")[:-1]
    return ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _manifest_notes(
    manifest: Manifest,
    table: ClassTable,
    files: Sequence[ImageFile],
    groups: dict[str, str],
    options: PackOptions,
) -> list[str]:
    notes = []
    columns = options.columns
    if not manifest.has_labels:
        notes.append(_suggest_label_column(manifest, columns.path))
    if missing := describe_missing(manifest.missing):
        notes.append(f"read as no label: {missing}")
    if table.merged:
        notes.append(f"other notations of the same number: {list_some(table.merged)}")
    if columns.group:
        alone = len(files) - sum(file.path in groups for file in files)
        each = f"; {count_of(alone, 'image')} without one, each its own group" if alone else ""
        notes.append(
            f"{count_of(len(set(groups.values())), 'group')} by the column {columns.group}{each}"
        )
    return notes


def _suggest_label_column(manifest: Manifest, path_column: str) -> str:
    others = [name for name in manifest.columns if name != path_column]
    if not others:
        return f"no labels: the manifest has only the column {path_column}"
    by_word = {name.casefold(): name for name in others}
    likely = next((by_word[word] for word in _LABEL_NAMES if word in by_word), others[0])
    return (
        f"no labels: the manifest has the columns {', '.join(manifest.columns)}; "
        f"--label-column {likely}  reads them from there"
    )
