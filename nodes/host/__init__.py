"""Everything in this pack that depends on ComfyUI's internals, so that a change there affects only this package.

`models` and `text_encoders`: the parts of a MODEL and a CLIP that hold sites. `latents`: their sizes. `denoiser` and
`fitting`: run prompts through them for a fit. `model_steering`, `clip_steering`, `hooks`: apply a map to them;
`steering` applies it to both at once, and `sampling` samples with the result. `folders`: where maps are stored.
`language`: language models. `demo_model`: the shipped model. `progress`: bars and interrupts.
"""
