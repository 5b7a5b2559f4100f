#!/bin/sh
# Check what is installed in .venv and how it is deployed; the tools are pinned by hash themselves.
#
#   scripts/audit.sh licences          fails on a licence that is not permissive
#   scripts/audit.sh vulnerabilities   asks PyPI's advisories; needs the network
#   scripts/audit.sh sbom FILE         CycloneDX JSON of .venv
#   scripts/audit.sh deployments       Dockerfile, manifest, scripts and workflows; no network
#   scripts/audit.sh tools             only installs the tools, in .venv/audit
set -eu
cd "$(dirname "$0")/.."
tools=.venv/audit

# Matched as parts of the licence's name or SPDX expression.
permissive="Apache;BSD;MIT;ISC;PSF;Python Software Foundation;MPL-2.0;Mozilla Public License 2.0"
permissive="$permissive;HPND;CMU-MIT;Unlicense;Zlib"

install_tools() {
    [ -x .venv/bin/python ] || { echo "audit: run make setup first" >&2; exit 1; }
    if [ "$(cat $tools/.stamp 2>/dev/null)" != "$(cksum <requirements/audit.txt)" ]; then
        .venv/bin/python -m venv --clear $tools
        $tools/bin/pip install --quiet --disable-pip-version-check --require-hashes --no-deps \
            -r requirements/audit.txt
        cksum <requirements/audit.txt >$tools/.stamp
    fi
}

case "${1:-}" in
tools)
    install_tools
    ;;
licences)
    install_tools
    # shellcheck disable=SC2046 # one word a package
    $tools/bin/pip-licenses --python=.venv/bin/python --from=mixed --partial-match \
        --allow-only="$permissive" --packages torch \
        $(sed -n 's/^\([A-Za-z0-9._-]*\)==.*/\1/p' requirements/locked.txt)
    ;;
vulnerabilities)
    install_tools
    $tools/bin/pip-audit --require-hashes --disable-pip -r requirements/locked.txt
    $tools/bin/pip-audit --require-hashes --disable-pip -r requirements/audit.txt
    ;;
sbom)
    install_tools
    $tools/bin/cyclonedx-py environment --pyproject pyproject.toml --output-format JSON \
        --output-reproducible --output-file "${2:?name the file to write}" .venv/bin/python
    ;;
deployments)
    install_tools
    $tools/bin/hadolint deploy/Dockerfile
    for release in 1.29 1.37; do # sidecars came with the first
        $tools/bin/kubernetes-validate --strict --quiet -k $release deploy/kubernetes/job.yaml
    done
    $tools/bin/shellcheck deploy/*.sh deploy/slurm/train.sbatch scripts/*.sh .ci/run
    $tools/bin/zizmor --offline --quiet .github/workflows
    ;;
*)
    sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
