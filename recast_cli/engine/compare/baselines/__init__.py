"""The methods beside RECAST in a comparison, one file each."""
