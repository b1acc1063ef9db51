#!/usr/bin/env bash
# From nothing but Python 3.11 to a finished study: makes .venv, installs, runs the cpu() curriculum study, shows its front.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

name=${1:-quickstart}
source deploy/environment.sh

echo "Running the study '$name': how broad must a data mixture be to teach a composite skill? (about 4 minutes on 2 cores)"
.venv/bin/study launch cmsp_curriculum:cpu --name "$name" || [ $? -eq 1 ]  # 1: some trials failed, the others have a front

echo
.venv/bin/study pareto "$name" --plot "$name-front.png"
.venv/bin/study pareto "$name" --plot "$name-front.html" >/dev/null
cat <<EOF

related_atoms says how broad the mixture was: 3 holds every atom of the composite, 0 only the composite itself.

The plot:       $PWD/$name-front.png
To explore:     $PWD/$name-front.html
All of it:      .venv/bin/study report "$name"    one page for the browser
The model:      .venv/bin/study model "$name" --knee --out "$name-model", then .venv/bin/study verify "$name-model"
The MLflow UI:  .venv/bin/mlflow ui --backend-store-uri sqlite:///${STUDY_HOME:-$HOME/narrow-studies}/mlflow.db
Go on with:     .venv/bin/study launch cmsp_curriculum:cpu --name "$name" --trials 60
EOF
