"""Models by name: the bundled ones, any local folder in Hugging Face format, a GGUF file, a LoRA adapter, any on the hub.

What it is: `resolve` turns a name into a local folder (safetensors, config, tokenizer), `load` turns that into a model
and its tokenizer. GGUF files are converted, and adapters merged, once into a cache (`$CASPO_CACHE`, else
`~/.cache/caspo/models`).
What it is not: an installer (it never runs pip) or a loader of pickles (`*.bin` and `*.pt` run code when opened).

`bundled` is the table of models that need no hub, `cache` the folder of what is made, `gguf` looks into a GGUF file,
`conversion` makes a folder of it, `adapter` one of an adapter and its base, `reading` loads a folder, `names` finds the
folder of a name, `files` says which files of a folder are the model. `placement` chooses device and precision, for which
`probe` tries out the CPU.
"""

from caspo.engines.models.bundled import BUNDLED, BundledModel, GgufWheels, ShippedAdapter, ShippedFolder
from caspo.engines.models.cache import cache_dir
from caspo.engines.models.files import model_files, model_inputs, stored_dtype
from caspo.engines.models.names import adapter_and_base, gguf_file, load, model_digest, resolve
from caspo.engines.models.reading import read_tokenizer

__all__ = [
    "BUNDLED", "BundledModel", "GgufWheels", "ShippedAdapter", "ShippedFolder", "adapter_and_base", "cache_dir", "gguf_file",
    "load", "model_digest", "model_files", "model_inputs", "read_tokenizer", "resolve", "stored_dtype",
]  # fmt: skip
