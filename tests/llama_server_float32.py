"""llama.cpp's own HTTP server (wheel xllamacpp) on a GGUF file, in float32 throughout; ends when its input does."""

import os
import sys

import xllamacpp

if __name__ == "__main__":
    settings = xllamacpp.CommonParams()
    settings.model.path = sys.argv[1]
    settings.n_ctx, settings.n_parallel, settings.cpuparams.n_threads = 2048, 1, 1
    settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    settings.port = 0
    server = xllamacpp.Server(settings)
    print(f"LISTENING {server.listening_address}", flush=True)
    sys.stdin.read()
    os._exit(0)
