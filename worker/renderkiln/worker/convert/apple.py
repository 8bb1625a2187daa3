"""Rewrites the flags of Apple's `torch2coreml` into ours, so that a known command line goes on working.

docs/convert.md has the table of them, with what differs and why.
"""

from __future__ import annotations

from collections.abc import Iterator

from typer.core import TyperCommand

from renderkiln.schema.errors import BadInputError

_RENAMED = {
    "--custom-vae-version": "--custom-vae",
    "--quantize-nbits": "--nbits",
    "--bundle-resources-for-swift-cli": "--bundle-for-swift",
    "--check-output-correctness": "--check",
}
#: What these say is read from the model itself, or decided where the model is loaded; True: a value follows.
_IGNORED = {
    "--xl-version": False,
    "--compute-unit": True,
    "--text-token-sequence-length": True,
    "--text-encoder-hidden-size": True,
    "--text-encoder-vocabulary-url": True,
    "--text-encoder-merges-url": True,
}
_SD3 = "Stable Diffusion 3 cannot be converted"
_REFUSED = {
    "--refiner-version": "convert the refiner as a model of its own, into a folder of its own",
    "--convert-mmdit": _SD3,
    "--sd3-version": _SD3,
    "--include-t5": _SD3,
}
_STAGES = {
    "--convert-text-encoder": "text_encoders",
    "--convert-unet": "unet",
    "--convert-vae-decoder": "vae_decoder",
    "--convert-vae-encoder": "vae_encoder",
    "--convert-safety-checker": "safety_checker",
}
#: To Core ML the systems of one year are one.
_TARGETS = {"iOS16": "macOS13", "iOS17": "macOS14", "iOS18": "macOS15"}


def translate(arguments: list[str]) -> list[str]:
    """The same command line in our flags; what is ours already stays as it is.

    Raises:
        BadInputError: a flag asks for what only Apple's converter does.
    """
    words = list(_words(arguments))
    result: list[str] = []
    stages: list[str] = []
    for_controlnet = controlnets = False
    while words:
        word = words.pop(0)
        if word in _REFUSED:
            raise BadInputError(f"{word}: {_REFUSED[word]}")
        if word in _IGNORED:
            if _IGNORED[word] and words:
                words.pop(0)
        elif word in _STAGES:
            stages.append(_STAGES[word])
        elif word == "--unet-support-controlnet":
            for_controlnet = True
        elif word == "--convert-controlnet":
            # Apple's takes any number of names.
            while words and not words[0].startswith("-"):
                result += ["--controlnet", words.pop(0)]
                controlnets = True
        elif word == "--attention-implementation" and words:
            result += ["--attention", words.pop(0).lower().replace("_", "-")]
        elif word in ("--min-deployment-target", "--deployment-target") and words:
            name = words.pop(0)
            result += ["--deployment-target", _TARGETS.get(name, name)]
        elif word == "--model-version" and words:
            result.append(words.pop(0))
        else:
            result.append(_RENAMED.get(word, word))
    if stages:
        if for_controlnet:
            stages = ["control-unet" if stage == "unet" else stage for stage in stages]
        result += ["--stages", ",".join([*stages, "controlnet"] if controlnets else stages)]
    return result


def _words(arguments: list[str]) -> Iterator[str]:
    """`--flag=value` as two words where the flag is one of Apple's."""
    known = {*_RENAMED, *_IGNORED, *_REFUSED}
    known |= {"--attention-implementation", "--min-deployment-target", "--model-version", "--convert-controlnet"}
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if equals and flag in known:
            yield flag
            yield value
        else:
            yield argument


class AppleCommand(TyperCommand):
    """A command that takes Apple's flags beside its own."""

    def parse_args(self, ctx, args):  # type: ignore[no-untyped-def]
        """As the base class, after the rewriting."""
        return super().parse_args(ctx, translate(args))
