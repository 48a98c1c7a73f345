"""All that this pack knows of ComfyUI's inside, so that a change there is mended here.

`folders`: where maps lie. `modules`: the parts of a MODEL and a CLIP that hold sites. `steering`: putting maps on
them. `fitting`: prompts through them. `demo_model`: the shipped model as MODEL, CLIP and VAE.
"""
