"""Everything this pack knows about ComfyUI's internals, so that a change there is followed here alone.

`models` and `text_encoders`: the parts of a MODEL and a CLIP that hold sites. `latents`: their sizes. `denoiser` and
`fitting`: prompts through them, for a fit. `model_steering`, `clip_steering`, `hooks`: putting a map on them;
`steering` does both at once, and `sampling` samples with the result. `folders`: where maps lie. `language`: language
models. `demo_model`: the shipped model. `progress`: bars and interrupts.
"""
