//! How the story is told: steps, facts in aligned columns, and claims that hold or don't.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use anyhow::Result;
use tokio::time::Instant;

/// Width of the names of facts.
const NAME: usize = 18;
/// Width of running text.
const TEXT: usize = 100;

/// What is told, on standard output.
#[derive(Debug)]
pub struct Transcript {
    colours: bool,
    began: Instant,
    step_began: Instant,
    steps: u32,
    claims: u32,
    broken: Vec<String>,
}

#[derive(Debug, Clone, Copy)]
enum Style {
    Bold,
    Dim,
    Good,
    Bad,
}

impl Transcript {
    /// One whose clock starts now.
    pub fn begin() -> Self {
        let now = Instant::now();
        // https://no-color.org
        let colours = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { colours, began: now, step_began: now, steps: 0, claims: 0, broken: Vec::new() }
    }

    fn styled(&self, style: Style, text: &str) -> String {
        let code = match style {
            Style::Bold => "1",
            Style::Dim => "2",
            Style::Good => "32",
            Style::Bad => "31",
        };
        if self.colours { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }

    /// The title of it all.
    pub fn title(&self, text: &str) -> Result<()> {
        print(&self.styled(Style::Bold, text))
    }

    /// Text that everybody should read.
    pub fn notice(&self, text: &str) -> Result<()> {
        wrap(text, TEXT).iter().try_for_each(|line| print(&self.styled(Style::Bold, &format!("!  {line}"))))
    }

    /// Begins a step: what happens, and why it matters.
    pub fn step(&mut self, title: &str, why: &str) -> Result<()> {
        self.steps += 1;
        print("")?;
        print(&self.styled(Style::Bold, &format!("{}  {title}", self.steps)))?;
        for line in wrap(why, TEXT) {
            print(&format!("   {}", self.styled(Style::Dim, &line)))?;
        }
        self.step_began = Instant::now();
        Ok(())
    }

    /// Ends a step with the time it took.
    pub fn done(&self) -> Result<()> {
        let seconds = self.step_began.elapsed().as_secs_f64();
        print(&format!("   {}", self.styled(Style::Dim, &format!("{seconds:.2} s"))))
    }

    /// Something to see.
    pub fn fact(&self, name: &str, value: &str) -> Result<()> {
        let mut lines = value.lines();
        let name = self.styled(Style::Dim, &format!("{name:<NAME$}"));
        print(&format!("   {name} {}", lines.next().unwrap_or_default()))?;
        lines.try_for_each(|line| print(&format!("   {:NAME$} {line}", "")))
    }

    /// Something that must hold.
    pub fn claim(&mut self, holds: bool, what: &str) -> Result<()> {
        self.claims += 1;
        let mark = if holds {
            self.styled(Style::Good, "✓")
        } else {
            self.styled(Style::Bad, "✗ DOES NOT HOLD:")
        };
        if !holds {
            self.broken.push(what.to_owned());
        }
        print(&format!("   {mark} {what}"))
    }

    /// The last line, and how the process is to end.
    pub fn end(&self) -> Result<ExitCode> {
        print("")?;
        let seconds = self.began.elapsed().as_secs_f64();
        if self.broken.is_empty() {
            let line =
                format!("{} steps, {} claims checked, all hold, {seconds:.1} s", self.steps, self.claims);
            print(&self.styled(Style::Bold, &line))?;
            return Ok(ExitCode::SUCCESS);
        }
        let line = format!("{} of {} claims do not hold:", self.broken.len(), self.claims);
        print(&self.styled(Style::Bad, &line))?;
        self.broken.iter().try_for_each(|claim| print(&format!("   {claim}")))?;
        Ok(ExitCode::FAILURE)
    }
}

/// One line on standard output.
pub fn print(line: &str) -> Result<()> {
    match writeln!(std::io::stdout(), "{line}") {
        // Who pipes us into `head` has seen enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => Ok(other?),
    }
}

/// One line on standard error.
pub fn complain(line: &str) {
    writeln!(std::io::stderr(), "countersign-demo: {line}").ok();
}

fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + word.chars().count() < width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_broken_at_words() {
        assert_eq!(wrap("one two three", 8), ["one two", "three"]);
        assert_eq!(wrap("  ", 8), Vec::<String>::new());
    }
}
