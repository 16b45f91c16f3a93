//! The layout of a data directory: the one place that names what lies in it, and tells one from a directory of others.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// Says that a directory is Proa's. The first thing made in it and the last one removed.
const MARKER: &str = ".proa-data-directory";
const MARKER_TEXT: &str =
    "Everything here but what others put here belongs to Proa; `proa reset --data-dir DIR` removes it.\n";
const STORE: &str = "store";
const IMAGES: &str = "images";
const AGENT: &str = "agent";
/// The API server's keys.
const PKI: &str = "pki";
const ADMIN_KUBECONFIG: &str = "admin.kubeconfig";
/// What a machine that joined a cluster is there.
const AGENT_KUBECONFIG: &str = "agent.kubeconfig";
/// The end of a file's name while it is being written.
pub(crate) const UNFINISHED: &str = ".new";
/// What makes a new file system not empty.
const LOST_AND_FOUND: &str = "lost+found";

/// A data directory. All state of one `proa` lies beneath it.
///
/// Its path is absolute, for shims and mounts outlive the directory we were started in, and free of symbolic links, for
/// two names of one directory must be one installation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DataDir(PathBuf);

impl DataDir {
    /// Makes the directory, or takes one that is there.
    ///
    /// # Errors
    /// When it cannot be made, or holds what is not Proa's.
    pub(crate) fn create(path: &Path) -> anyhow::Result<DataDir> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
        let root = made.and_then(|()| path.canonicalize()).with_context(|| {
            format!("cannot create the data directory {}: choose another with --data-dir DIR", path.display())
        })?;
        match contents(&root)? {
            Contents::Proa | Contents::Nothing => {
                let data = DataDir(root);
                data.mark().with_context(|| format!("cannot write to the data directory {}", data.0.display()))?;
                Ok(data)
            }
            Contents::Foreign(name) => bail!(
                "{} is no data directory of Proa, it holds {}: choose a new or an empty one with --data-dir DIR",
                root.display(),
                name.display()
            ),
        }
    }

    /// The data directory of that name; `None` when there is no directory, or nothing in it.
    ///
    /// # Errors
    /// When the directory cannot be read, or holds what is not Proa's and nothing that is.
    pub(crate) fn find(path: &Path) -> anyhow::Result<Option<DataDir>> {
        let root = match path.canonicalize() {
            Ok(root) => root,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("cannot look into {}", path.display())),
        };
        match contents(&root)? {
            Contents::Proa => Ok(Some(DataDir(root))),
            Contents::Nothing => Ok(None),
            Contents::Foreign(name) => {
                bail!(
                    "{} is no data directory of Proa, it holds {}: nothing was removed",
                    root.display(),
                    name.display()
                )
            }
        }
    }

    /// The data directory that was there under that name.
    ///
    /// # Errors
    /// When not even the folder it lay in is there.
    pub(crate) fn gone(path: &Path) -> anyhow::Result<DataDir> {
        let path = std::path::absolute(path)?;
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
            bail!("{} cannot be a data directory", path.display())
        };
        let folder = folder.canonicalize().with_context(|| format!("cannot look into {}", folder.display()))?;
        Ok(DataDir(folder.join(name)))
    }

    fn mark(&self) -> std::io::Result<()> {
        let marker = self.0.join(MARKER);
        if marker.exists() { Ok(()) } else { fs::write(marker, MARKER_TEXT) }
    }

    /// Removes what is Proa's, the marker last: what is cut short can be done again. The directory itself stays, it may
    /// be a mount point.
    ///
    /// Returns the names of what others put there.
    ///
    /// # Errors
    /// When something could not be removed.
    pub(crate) fn empty(&self) -> std::io::Result<Vec<OsString>> {
        self.mark()?;
        let locks = Part::ALL.map(Part::lock);
        let files = [ADMIN_KUBECONFIG, AGENT_KUBECONFIG]
            .into_iter()
            .flat_map(|name| [name.to_owned(), format!("{name}{UNFINISHED}")]);
        let own = [STORE, IMAGES, AGENT, PKI].map(str::to_owned).into_iter().chain(files).chain(locks);
        for name in own.chain([MARKER.to_owned()]) {
            let path = self.0.join(name);
            let removed = match path.symlink_metadata() {
                Ok(meta) if meta.is_dir() => fs::remove_dir_all(&path),
                Ok(_) => fs::remove_file(&path),
                Err(error) => Err(error),
            };
            match removed {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(std::io::Error::new(error.kind(), format!("{}: {error}", path.display())));
                }
                _ => {}
            }
        }
        names(&self.0)
    }

    /// Holds one part's use of the directory for as long as the file is open; the kernel lets go when the process dies.
    ///
    /// # Errors
    /// When another process runs that part on this directory.
    pub(crate) fn lock(&self, part: Part) -> anyhow::Result<File> {
        let path = self.0.join(part.lock());
        let file = File::options().write(true).create(true).truncate(false).open(&path);
        let file = file.with_context(|| format!("cannot open {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => bail!(
                "another proa {} runs on {}: stop it first, or choose another directory with --data-dir DIR",
                part.name(),
                self.0.display()
            ),
            Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
        }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.0
    }

    /// Tells this installation apart from others on the machine, in names of interfaces, cgroups and tables: eight
    /// hexadecimal digits of the path's hash (FNV-1a, stable over versions).
    pub(crate) fn instance(&self) -> String {
        let hash = self.0.as_os_str().as_encoded_bytes().iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        format!("{:08x}", (hash >> 32) as u32)
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.0.join(STORE)
    }

    pub(crate) fn pki(&self) -> PathBuf {
        self.0.join(PKI)
    }

    pub(crate) fn images(&self) -> PathBuf {
        self.0.join(IMAGES)
    }

    pub(crate) fn agent(&self) -> PathBuf {
        self.0.join(AGENT)
    }

    /// Makes the agent's folder. Nobody else may look into it: volumes hold Secrets, and a container's root a program
    /// with the set-uid bit.
    pub(crate) fn create_agent(&self) -> std::io::Result<PathBuf> {
        let agent = self.agent();
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&agent)?;
        fs::set_permissions(&agent, fs::Permissions::from_mode(0o700))?;
        Ok(agent)
    }

    pub(crate) fn runtime(&self) -> PathBuf {
        self.agent().join("runtime")
    }

    pub(crate) fn network(&self) -> PathBuf {
        self.agent().join("network")
    }

    pub(crate) fn agent_kubeconfig(&self) -> PathBuf {
        self.0.join(AGENT_KUBECONFIG)
    }

    pub(crate) fn admin_kubeconfig(&self) -> PathBuf {
        self.0.join(ADMIN_KUBECONFIG)
    }
}

/// Whose what lies in a directory is.
enum Contents {
    Nothing,
    Proa,
    /// Nobody's whom we know; one of the names.
    Foreign(OsString),
}

fn contents(directory: &Path) -> anyhow::Result<Contents> {
    let mut names = names(directory).with_context(|| format!("cannot look into {}", directory.display()))?;
    let has = |name: &str| names.iter().any(|held| held == name);
    // Before there was a marker, a platform that had started left a lock and the folder of a part.
    let older = [STORE, AGENT].into_iter().any(has) && Part::ALL.iter().any(|part| has(&part.lock()));
    // Of a directory that somebody deleted, the places where something is mounted are left.
    let remains = names.iter().all(|name| name == AGENT) && has(AGENT);
    if has(MARKER) || older || (remains && is_mounted_below(&directory.join(AGENT))?) {
        return Ok(Contents::Proa);
    }
    Ok(names.pop().map_or(Contents::Nothing, Contents::Foreign))
}

fn is_mounted_below(directory: &Path) -> anyhow::Result<bool> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    Ok(mount_points(&table).any(|place| place != directory && place.starts_with(directory)))
}

/// The fifth field of each line, in which white space and backslashes are octal (proc(5)).
fn mount_points(mountinfo: &str) -> impl Iterator<Item = PathBuf> {
    let places = mountinfo.lines().filter_map(|line| line.split(' ').nth(4));
    places.map(|place| {
        let plain = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
        PathBuf::from(plain.iter().fold(place.to_owned(), |place, (octal, character)| place.replace(octal, character)))
    })
}

fn names(directory: &Path) -> std::io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        if name != OsStr::new(LOST_AND_FOUND) {
            names.push(name);
        }
    }
    Ok(names)
}

/// What of a data directory one process at a time may use. The API server and an agent may share a directory.
#[derive(Clone, Copy)]
pub(crate) enum Part {
    Server,
    Agent,
}

impl Part {
    const ALL: [Part; 2] = [Part::Server, Part::Agent];

    fn name(self) -> &'static str {
        match self {
            Part::Server => "server",
            Part::Agent => "agent",
        }
    }

    fn lock(self) -> String {
        format!("{}.lock", self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        path.metadata().expect("it is there").permissions().mode() & 0o777
    }

    #[test]
    fn a_directory_of_others_is_neither_taken_nor_emptied() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir(dir.path().join("images")).expect("holiday pictures");
        for refused in [DataDir::create(dir.path()).map(|_| ()), DataDir::find(dir.path()).map(|_| ())] {
            let said = format!("{:#}", refused.expect_err("it is not ours"));
            assert!(said.contains("is no data directory of Proa, it holds images"), "{said}");
        }
        assert_eq!(names(dir.path()).expect("names"), ["images"]);
    }

    #[test]
    fn emptying_takes_what_is_ours_and_leaves_what_is_not() {
        let dir = tempfile::tempdir().expect("a directory");
        let data = DataDir::create(dir.path()).expect("ours");
        drop(data.lock(Part::Agent).expect("a lock"));
        for folder in [data.store(), data.images(), data.network()] {
            fs::create_dir_all(folder.join("deep")).expect("a folder");
        }
        let elsewhere = tempfile::tempdir().expect("a directory");
        fs::write(elsewhere.path().join("key"), "").expect("a file");
        std::os::unix::fs::symlink(elsewhere.path(), data.root().join(PKI)).expect("a link");
        for file in ["admin.kubeconfig", "admin.kubeconfig.new", "thesis.tex"] {
            fs::write(data.root().join(file), "").expect("a file");
        }
        assert_eq!(data.empty().expect("emptied"), ["thesis.tex"]);
        assert_eq!(names(dir.path()).expect("names"), ["thesis.tex"]);
        assert!(elsewhere.path().join("key").exists(), "no link is followed");
        fs::remove_file(dir.path().join("thesis.tex")).expect("done");
        assert_eq!(DataDir::find(dir.path()).expect("readable"), None);
    }

    #[test]
    fn a_directory_from_before_the_marker_is_still_ours() {
        for folder in [STORE, AGENT] {
            let dir = tempfile::tempdir().expect("a directory");
            fs::create_dir(dir.path().join(folder)).expect("a folder");
            assert!(DataDir::find(dir.path()).is_err(), "a folder alone says nothing");
            fs::write(dir.path().join("agent.lock"), "").expect("a lock");
            assert!(DataDir::find(dir.path()).expect("readable").is_some());
            assert!(DataDir::create(dir.path()).is_ok());
        }
    }

    #[test]
    fn the_remains_of_a_deleted_directory_are_known_by_what_is_mounted_there() {
        let table = "1 0 8:1 / / rw - ext4 /dev/sda rw\n\
                     2 1 0:4 net:[1] /d/agent/network/netns/a rw - nsfs nsfs rw\n\
                     3 1 0:9 / /an\\040other\\134/agent rw - tmpfs tmpfs rw\n";
        let places = ["/", "/d/agent/network/netns/a", "/an other\\/agent"].map(PathBuf::from);
        assert_eq!(mount_points(table).collect::<Vec<_>>(), places);
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir_all(dir.path().join(AGENT).join("network")).expect("a folder");
        assert!(DataDir::find(dir.path()).is_err(), "nothing is mounted there");
    }

    #[test]
    fn a_new_file_system_is_empty() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir(dir.path().join(LOST_AND_FOUND)).expect("as mkfs leaves it");
        assert_eq!(DataDir::find(dir.path()).expect("readable"), None);
        let data = DataDir::create(dir.path()).expect("ours");
        assert_eq!(data.empty().expect("emptied"), Vec::<OsString>::new());
    }

    #[test]
    fn two_names_of_one_directory_are_one_installation() {
        let dir = tempfile::tempdir().expect("a directory");
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        std::os::unix::fs::symlink(&real, &link).expect("a link");
        let data = DataDir::create(&real).expect("ours");
        let other = DataDir::create(&link).expect("the same");
        assert_eq!((data.root(), data.instance()), (other.root(), other.instance()));
        assert_eq!(DataDir::find(&link).expect("readable"), Some(data));
    }

    #[test]
    fn others_may_not_look_into_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let data = DataDir::create(&dir.path().join("data")).expect("ours");
        assert_eq!(mode(data.root()), 0o700);
        fs::create_dir(data.agent()).expect("as older versions left it");
        fs::set_permissions(data.agent(), fs::Permissions::from_mode(0o755)).expect("open to all");
        assert_eq!(mode(&data.create_agent().expect("the agent's")), 0o700);
    }
}
