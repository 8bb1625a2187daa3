"""Finds the model that is to be converted: an installed one, a diffusers folder, a checkpoint file, or one of the Hub.

Reads names, small JSON files and headers; the weights are the stages' own affair.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from renderkiln.home.folder import DataFolder
from renderkiln.home.models import find_model
from renderkiln.home.origin import read_origin
from renderkiln.schema.errors import BadInputError, ModelNotFoundError, UnsupportedModelError

from ..models.choosing import is_converted_only
from ..models.hub import REPOSITORY
from ..models.weights import find_weights, read_json
from . import hub
from .checkpoint import check_fits, refuse_other_kinds, repository_of
from .facts import ControlNetFacts, Family, ModelFacts, ProjectionFacts
from .options import ConvertOptions
from .weights import fingerprint, read_header, refuse_pickles

_SD = "StableDiffusion"
#: What model_index.json may call the pipelines that can be converted.
FAMILIES: Mapping[str, Family] = {
    **{f"{_SD}{task}Pipeline": "sd" for task in ("", "Img2Img", "Inpaint", "ControlNet")},
    **{f"{_SD}XL{task}Pipeline": "sdxl" for task in ("", "Img2Img", "Inpaint", "ControlNet")},
    "LatentConsistencyModelPipeline": "sd",
    "LatentConsistencyModelImg2ImgPipeline": "sd",
}
#: The classes that a component may be of, and which components a family must have.
_CLASSES = {
    "text_encoder": ("CLIPTextModel", "CLIPTextModelWithProjection"),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "safety_checker": ("StableDiffusionSafetyChecker",),
}
_NEEDED: Mapping[Family, tuple[str, ...]] = {
    "sd": ("text_encoder", "unet", "vae"),
    "sdxl": ("text_encoder_2", "unet", "vae"),
}
_OPTIONAL: Mapping[Family, tuple[str, ...]] = {"sd": ("safety_checker",), "sdxl": ("text_encoder",)}


class Source(BaseModel):
    """Where a model's files are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    #: In diffusers' layout; of a checkpoint only the small files are used.
    folder: Path
    revision: str | None = None
    #: A single file in the original layout that holds the weights.
    checkpoint: Path | None = None
    #: Another VAE's folder.
    custom_vae: Path | None = None
    controlnets: tuple[tuple[str, Path], ...] = ()
    #: A safetensors file with the linear layer of --multilingual-projection.
    projection: Path | None = None


def find_source(
    model: str,
    models: DataFolder,
    *,
    revision: str | None = None,
    config: Path | None = None,
    custom_vae: str | None = None,
    controlnets: tuple[str, ...] = (),
    projection: Path | None = None,
) -> Source:
    """Where a model is; fetches it from the Hub if it is none of this machine's.

    Args:
        model: a diffusers folder, a .safetensors file, the name of an installed model, or a repository of the Hub.
        config: a diffusers folder whose small files describe a checkpoint file.
        custom_vae, controlnets: folders or repositories.

    Raises:
        BadInputError: there is no such model, or it is a pickle or of a kind that cannot be converted.
        ModelFetchError: it is to come from the Hub, which cannot be reached or refuses.
        ModelLoadError: it is there, and damaged.
    """
    refuse_pickles(model)
    path = Path(model).expanduser()
    if path.is_file():
        header = read_header(path)
        refuse_other_kinds(path, header)
        folder = _config_folder(config) if config else hub.fetch_small_files(repository_of(path, header))
        name, source_revision, checkpoint = path.stem, None, path
    else:
        if config is not None:
            raise BadInputError("--config describes a checkpoint file; a folder has its own config files")
        name, folder, source_revision = _find_folder(model, models, revision)
        checkpoint = None
    return Source(
        name=name,
        folder=folder,
        revision=source_revision,
        checkpoint=checkpoint,
        custom_vae=_find_part(custom_vae, "--custom-vae", "vae") if custom_vae else None,
        controlnets=tuple(_find_controlnet(each) for each in controlnets),
        projection=projection.expanduser() if projection else None,
    )


def read_facts(source: Source, options: ConvertOptions) -> ModelFacts:
    """What the plan needs to know. Raises BadInputError (also for an unsupported kind) and ModelLoadError."""
    index = read_json(source.folder / "model_index.json")
    if source.checkpoint is None and is_converted_only(source.folder):
        raise UnsupportedModelError(f"{source.name} is converted already; convert the model that it was made of")
    pipeline = str(index.get("_class_name"))
    family = FAMILIES.get(pipeline)
    if family is None:
        raise UnsupportedModelError(
            f"{source.name} is a {pipeline}; renderkiln converts Stable Diffusion 1, 2 and XL ({', '.join(FAMILIES)})"
        )
    configs: dict[str, dict[str, Any]] = {}
    weights: dict[str, str] = {}
    for component in (*_NEEDED[family], *_OPTIONAL[family]):
        entry = index.get(component)
        class_name = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
        needed = component in _NEEDED[family]
        if class_name is None and not needed:
            continue
        if class_name not in _CLASSES[component]:
            raise UnsupportedModelError(
                f"{source.name}: its {component} is {class_name or 'missing'}; {' or '.join(_CLASSES[component])} can "
                "be converted"
            )
        if component == "safety_checker" and source.checkpoint is not None:
            continue  # a checkpoint file has none
        folder = component_folder(source, component)
        configs[component] = read_json(folder / "config.json")
        weights[component] = _identity(source, component, folder)
    if source.checkpoint is not None:
        check_fits(source.checkpoint, configs["unet"])
    return ModelFacts(
        name=source.name,
        revision=source.revision,
        pipeline=pipeline,
        family=family,
        configs=configs,
        weights=weights,
        custom_vae=source.custom_vae is not None,
        loras=tuple(_lora_identity(lora.path) for lora in options.loras),
        controlnets=tuple(
            ControlNetFacts(name=name, config=_controlnet_config(name, folder), weights=_folder_identity(folder))
            for name, folder in source.controlnets
        ),
        projection=read_projection(source.projection) if source.projection else None,
        recipes={stage: _recipe_identity(path) for stage, path in options.recipes},
    )


def read_projection(path: Path) -> ProjectionFacts:
    """The shape of a multilingual projection: a file with one linear layer. Raises BadInputError and ModelLoadError."""
    if path.suffix != ".safetensors":
        raise UnsupportedModelError(
            f"--multilingual-projection {path}: only .safetensors is read. A TorchScript file can run any code when it "
            "is loaded; where you trust it, write its layer with safetensors.torch.save_file(torch.jit.load(FILE)"
            ".state_dict(), 'projection.safetensors')"
        )
    header = read_header(path)
    matrices = {name: tensor["shape"] for name, tensor in header.items() if name.endswith("weight")}
    rest = [name for name in header if name not in matrices and not name.endswith("bias")]
    if len(matrices) != 1 or rest or len(next(iter(matrices.values()))) != 2:
        raise BadInputError(
            f"--multilingual-projection {path}: one linear layer is wanted, and it holds {sorted(header)}"
        )
    outputs, inputs = next(iter(matrices.values()))
    return ProjectionFacts(inputs=inputs, outputs=outputs, weights=fingerprint([path]))


def component_folder(source: Source, component: str) -> Path:
    """The folder of a component's config.json and, but for a checkpoint's, its weights."""
    if component == "vae" and source.custom_vae is not None:
        return source.custom_vae
    return source.folder / component


def _find_folder(model: str, models: DataFolder, revision: str | None) -> tuple[str, Path, str | None]:
    path = Path(model).expanduser()
    if (path / "model_index.json").is_file():
        _no_revision(model, revision)
        return path.resolve().name, path, None
    is_installed = not path.is_absolute() and (models.models / model / "model_index.json").is_file()
    if path.is_dir() and not is_installed:
        raise ModelNotFoundError(f"{path} is no model in diffusers' layout: it has no model_index.json")
    try:
        found = find_model(models, model, revision)
    except ModelNotFoundError:  # or it is here in another revision
        if not REPOSITORY.fullmatch(model):
            raise
        folder, commit = hub.fetch_model(model, revision)
        return model, folder, commit
    origin = read_origin(found)
    return model, found, origin.revision if origin else None


def _config_folder(config: Path) -> Path:
    folder = config.expanduser()
    if not (folder / "model_index.json").is_file():
        raise BadInputError(f"--config {config} is no model in diffusers' layout: it has no model_index.json")
    return folder


def _no_revision(model: str, revision: str | None) -> None:
    if revision is not None:
        raise BadInputError(f"--revision {revision}: {model} is a folder, of which no revision is known")


def _find_part(name: str, flag: str, subfolder: str) -> Path:
    """The folder of a single component: one of this machine, one within a pipeline's folder, or one of the Hub."""
    refuse_pickles(name)
    path = Path(name).expanduser()
    if path.is_file():
        raise BadInputError(f"{flag} {name} is a file; give a folder in diffusers' layout, or a repository of the Hub")
    if not path.is_dir():
        if not REPOSITORY.fullmatch(name):
            raise ModelNotFoundError(f"{flag} {name}: no such folder, and no repository's name (OWNER/NAME)")
        path = hub.fetch_component(name, subfolder)
    for folder in (path, path / subfolder):
        if (folder / "config.json").is_file():
            return folder
    raise ModelNotFoundError(f"{flag} {name}: there is no config.json in {path}")


def _find_controlnet(name: str) -> tuple[str, Path]:
    folder = _find_part(name, "--controlnet", "controlnet")
    return (Path(name).expanduser().resolve().name if Path(name).expanduser().is_dir() else name), folder


def _controlnet_config(name: str, folder: Path) -> dict[str, Any]:
    config = read_json(folder / "config.json")
    class_name = config.get("_class_name")
    if class_name != "ControlNetModel":
        raise UnsupportedModelError(f"--controlnet {name} is a {class_name}; a ControlNetModel can be converted")
    return config


def _identity(source: Source, component: str, folder: Path) -> str:
    if source.checkpoint is not None and folder == source.folder / component:
        return fingerprint([source.checkpoint])
    return _folder_identity(folder)


def _folder_identity(folder: Path) -> str:
    return fingerprint(find_weights(folder, half=True).paths)


def _lora_identity(path: Path) -> str:
    refuse_pickles(path.name)
    if not path.is_file():
        raise BadInputError(f"--lora {path}: there is no such file")
    read_header(path)
    return fingerprint([path])


def _recipe_identity(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise BadInputError(f"--recipe {path}: cannot be read: {error.strerror}") from None
