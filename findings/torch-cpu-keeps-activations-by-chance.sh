#!/usr/bin/env bash
# Whether a CPU training step's memory stays in the process is decided by chance, once a process.
#
# torch 2.14.1, CPU, Linux with glibc, address space randomisation on (the default).
# One would guess: the same program behaves the same in every process; a step that frees 160 MB of activations in
# tensors of 4 MB either always gives them back to the system or never.
# Seen: some equal processes keep the memory (no page fault in a later step), others give all of it back and have it
# cleared again, page by page, in every step: 40,000 faults, for as long as they live. Of 24 processes 4 kept it and 18
# gave it back; 10 and 6 of 16 in another hour. glibc raises its mmap threshold to the size of the first such block that
# is freed, so later ones come from the heap; whether the heap is then trimmed depends on where it happens to lie. With
# MALLOC_MMAP_MAX_=0 and a high MALLOC_TRIM_THRESHOLD_ no process faults. Timings of torch on a CPU therefore have two
# modes: compare medians of many processes, or set both.
# Fails if all of 60 processes behave alike, or if any process faults with the two variables set.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
[ "$(cat /proc/sys/kernel/randomize_va_space)" != 0 ] || { echo "address space randomisation is off here"; exit 1; }
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.14.1 2>/dev/null
cat > "$folder/step.py" <<'PYTHON'
import resource
import warnings

warnings.simplefilter("ignore")  # numpy is not installed, and not wanted
import torch

torch.set_num_threads(1)


def step():
    return sum(float(each[0]) for each in [torch.ones(2**20) for _ in range(40)])


for _ in range(8):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    step()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 4)
PYTHON
kept=0 returned=0 processes=0
while [ "$processes" -lt 60 ] && { [ "$kept" -lt 2 ] || [ "$returned" -lt 2 ]; }; do
    faults=$("$folder/venv/bin/python" "$folder/step.py")
    if [ "$faults" -lt 1000 ]; then kept=$((kept + 1)); elif [ "$faults" -gt 20000 ]; then returned=$((returned + 1)); fi
    processes=$((processes + 1))
done
echo "page faults a step below 1,000: $kept of $processes processes; above 20,000: $returned"
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=8589934592
worst=0
for _ in $(seq 8); do
    faults=$("$folder/venv/bin/python" "$folder/step.py")
    [ "$faults" -le "$worst" ] || worst=$faults
done
echo "with MALLOC_MMAP_MAX_=0 and MALLOC_TRIM_THRESHOLD_: at most $worst in 8 processes"
[ "$kept" -gt 0 ] && [ "$returned" -gt 0 ] && [ "$worst" -lt 1000 ]
