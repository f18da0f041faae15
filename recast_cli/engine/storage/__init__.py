"""Files that are whole or absent, safetensors byte by byte, digests, YAML with good errors; knows no network."""
