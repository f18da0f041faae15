"""The only room that builds timm networks: describe, build, find modules, take features."""
