"""Tools of the golden-file scripts: run by hand, never by the product's tests.

They need torch, transformers, gguf and a built llama.cpp, which the product does not.
"""
