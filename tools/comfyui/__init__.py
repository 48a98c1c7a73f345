"""A ComfyUI client: starts ComfyUI with this pack, runs workflows over HTTP, and opens its page. Tests use it too."""
