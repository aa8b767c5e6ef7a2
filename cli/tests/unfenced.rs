//! A run's journal fences by create-only puts. A store on which they do not hold is refused, unless it is asked for
//! (`scripts/setup rclone`).
#![allow(missing_docs)]

mod harness;

use harness::{
    Lab, Shape, drawn_seed,
    process::{self, Running},
};
use polo_store::testing::Rclone;

const SHAPE: Shape = Shape { num_steps: 8, hidden_size: 32 };

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_ignores_conditions_is_refused_unless_it_is_asked_for() {
    let server = Rclone::start(&Rclone::default_binary(), "bucket").await.expect("rclone");
    let mut lab = Lab::new(drawn_seed(), SHAPE);
    let undisturbed = lab.digest_of("undisturbed", 1);
    let run = |name: &str, flags: &[&str]| {
        let mut command = process::polo();
        command.arg("run").arg(lab.path("recipe.toml")).args(["--listen", "127.0.0.1:0", "--workers", "2"]);
        command.args(["--set", "run.store=s3://bucket/run"]).args(flags);
        command.envs(server.settings()).env("POLO_CACHE", lab.path("cache"));
        Running::start(command, &lab.path(name)).finish()
    };
    let refused = run("refused.log", &[]);
    assert!(!refused.status.success());
    let error = refused.talk.iter().find(|line| line.starts_with("error: ")).expect("an error");
    for part in ["s3://bucket/run", "of 3 create-only puts at once, 3 were told", "--unfenced"] {
        assert!(error.contains(part), "{error}");
    }
    let unfenced = run("unfenced.log", &["--unfenced"]);
    assert!(unfenced.talk.iter().any(|line| line.contains("cannot fence")), "{}", unfenced.talk.join("\n"));
    assert_eq!(lab.completed(&unfenced), undisturbed);
}
