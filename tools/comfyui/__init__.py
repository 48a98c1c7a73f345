"""A client of ComfyUI: starts one with this pack, runs workflows over HTTP, and opens its page. Tests use it, too."""
