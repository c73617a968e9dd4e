//! One psql that stays connected and is asked again and again: starting one per question would be measured too,
//! and a loop inside the server would hold a snapshot, which keeps dead rows alive and slows the applier down
//! (sevenfold, in this benchmark).

use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::instance::Instance;

pub(super) struct Session {
    child: Child,
    questions: Option<ChildStdin>,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Session {
    pub(super) fn open(server: &Instance, database: &str) -> Result<Self> {
        let mut child = server
            .client("psql")
            .args(["-X", "-q", "-A", "-t", "-d", database])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run psql")?;
        let answers = BufReader::new(child.stdout.take().context("psql has no output")?).lines();
        let questions = child.stdin.take();
        Ok(Self {
            child,
            questions,
            answers,
        })
    }

    /// The one line that a question is answered with.
    pub(super) fn ask(&mut self, question: &str) -> Result<String> {
        let stdin = self.questions.as_mut().context("psql takes no questions")?;
        writeln!(stdin, "{question};")?;
        stdin.flush()?;
        self.answers
            .next()
            .context("psql gave no answer")?
            .context("cannot read psql's answer")
    }

    /// Asks until the answer is `t`, with a pause in between.
    pub(super) fn wait_for(&mut self, question: &str, pause: Duration, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        while self.ask(question)? != "t" {
            if Instant::now() > deadline {
                bail!("not true after {} s: {question}", limit.as_secs());
            }
            if !pause.is_zero() {
                sleep(pause);
            }
        }
        Ok(())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // The end of its input ends psql.
        self.questions = None;
        let _ = self.child.wait();
    }
}
