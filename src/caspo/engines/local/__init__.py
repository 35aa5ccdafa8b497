"""The engine `hf`: our own batched decode loop over a model of transformers."""
