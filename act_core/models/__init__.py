"""Adapters: how to run a model of some library on prompts, so that it can be fitted."""
