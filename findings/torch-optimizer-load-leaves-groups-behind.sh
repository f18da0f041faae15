#!/usr/bin/env bash
# After `optimizer.load_state_dict` a parameter group that was kept from before steers nothing, in silence.
#
# torch 2.14.1, CPU.
# One would guess: loading writes into what is there, as `module.load_state_dict` does, whose tensors stay the same
# objects. So a training loop that keeps `groups = optimizer.param_groups`, or a group, to set its learning rate goes on
# to do so after a run was resumed.
# Seen: `load_state_dict` puts new dictionaries in place of the old ones; the list is a new one, too, while the parameters
# in it are the same. A rate that is written into a kept group is not an error, and changes no step: the resumed run
# trains on at the rate that was saved. Here the kept group says 0.0 and the weight moves by 0.5, for SGD and AdamW.
# Ask for `optimizer.param_groups` anew at every step, or load before anything keeps a group.
# Fails if the weight stands still, or if the module's tensors become other objects.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.14.1 2>/dev/null
cat > "$folder/resume.py" <<'PYTHON'
import warnings

warnings.simplefilter("ignore")  # numpy is not installed, and not wanted
import torch

for kind in (torch.optim.SGD, torch.optim.AdamW):
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = kind([weight], lr=0.5, weight_decay=0.0)
    groups, group = optimizer.param_groups, optimizer.param_groups[0]
    optimizer.load_state_dict(optimizer.state_dict())
    group["lr"] = groups[0]["lr"] = 0.0
    weight.grad = torch.ones(1)
    optimizer.step()
    moved = round(float(1 - weight), 3)
    same = optimizer.param_groups[0]["params"][0] is weight
    print(f"{kind.__name__}: kept rate {group['lr']}, rate {optimizer.param_groups[0]['lr']}, weight moved by {moved}")
    assert moved == 0.5 and same and group is not optimizer.param_groups[0] and groups is not optimizer.param_groups

module = torch.nn.Linear(2, 2)
kept = module.weight
module.load_state_dict({name: tensor + 1 for name, tensor in module.state_dict().items()})
print("module: the same parameter after loading:", module.weight is kept)
assert module.weight is kept
PYTHON
"$folder/venv/bin/python" "$folder/resume.py"
