//! What the help of commands ends with: examples, each of which the tests hold against the command line's grammar.

pub const POLO: &str = "Examples:
  polo prepare --input raw/ --output corpus/ --tokenizer tokenizer.json
  polo run recipe.toml --workers 4
  polo status --watch
  polo verify recipe.toml
  polo export recipe.toml --to model/
  polo submit recipe.toml --workers 8 --image registry.example/polo:0.1.0 --insecure

Exit codes:
  0   it is done
  1   it failed; the last line on standard error says why
  2   the command line makes no sense
  3   run and coordinator with --fail-on-worse: the run ended well, but a watched source is worse than allowed
  75  coordinator with --on-sigterm leave: it was terminated, and the run goes on

Environment:
  POLO_LOG         what is told of the inner workings, such as info or polo_coordinator=debug [default: warn]
  POLO_LOG_FORMAT  json for lines of JSON on standard error, each with run, generation, rank and step [default: text]";

pub const RUN: &str = "Examples:
  # Four workers, each replaced when it dies
  polo run recipe.toml --workers 4 --respawn

  # A shorter run, into another store, with curves for TensorBoard
  polo run recipe.toml --workers 2 --set stages.0.steps=60 --set run.store=s3://bucket/try --tensorboard

Exit codes: 0 if the run was completed, or stopped on request; 1 if it failed; 3 with --fail-on-worse. Ctrl-C stops it at
the next step boundary, with a checkpoint; the same command goes on from there.";

pub const COORDINATOR: &str = "Examples:
  # For workers of other machines, over TLS, which prove themselves with certificates
  polo coordinator recipe.toml --listen 0.0.0.0:7070 --workers 8 --tls-cert server.pem --tls-key server-key.pem \\
    --client-ca ca.pem

  # As under Kubernetes: SIGTERM leaves the run to the coordinator that is started next
  polo coordinator recipe.toml --workers 8 --on-sigterm leave --health-listen 127.0.0.1:7071

Exit codes: 0 if the run was completed, or stopped on request; 1 if it failed; 3 with --fail-on-worse; 75 if it was
terminated with --on-sigterm leave.";

pub const STATUS: &str = "Examples:
  polo status --watch
  polo status --json | jq .step
  polo status --address https://coordinator.example:7070 --ca ca.pem --token-file operator-token
  polo status --run marco-7b --namespace research --watch";

pub const CHECKPOINT: &str = "Examples:
  polo checkpoint
  polo checkpoint --run marco-7b";

pub const STOP: &str = "Examples:
  polo stop
  polo stop --run marco-7b";

pub const DRAIN: &str = "Examples:
  polo drain worker-3
  polo drain worker-3 --run marco-7b";

pub const VERIFY: &str = "Examples:
  polo verify recipe.toml
  polo verify --store s3://bucket/run --shallow --json";

pub const EXPORT: &str = "Examples:
  polo export recipe.toml --to model/
  polo export --store s3://bucket/run --step 5000 --dtype bf16 --to s3://bucket/models/step-5000";

pub const SHOW: &str = "Examples:
  polo recipe show recipe.toml
  polo recipe show recipe.toml --set batch.slots=4 --json
  polo recipe show configs/marco-7b.toml --tokens";

pub const SCHEMA: &str = "Examples:
  polo recipe schema > recipe.schema.json";

pub const METRICS: &str = "Examples:
  polo metrics
  polo metrics --json | jq .[].name";

pub const COMPLETIONS: &str = "Examples:
  polo completions bash > /etc/bash_completion.d/polo
  polo completions zsh > ~/.zfunc/_polo";
