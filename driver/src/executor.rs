//! Where hyper puts the tasks it makes for itself.

use hyper::rt::Executor;
use tokio_util::task::TaskTracker;

/// Tasks that somebody waits for.
#[derive(Clone, Debug)]
pub(crate) struct Tracked(pub(crate) TaskTracker);

impl<Task> Executor<Task> for Tracked
where
    Task: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, task: Task) {
        // Its owner waits for all of them at once, not for this one.
        drop(self.0.spawn(task));
    }
}
