"""Models: Transformer families, elastic backbones, headers, and the folder that ships."""
