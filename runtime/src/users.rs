//! From an image's `USER` (a name or numbers) to numbers, by the image's own `/etc/passwd` and `/etc/group`.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::spec::User;

/// Why a user cannot be told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// `/etc/passwd` does not know the name.
    #[error("unable to find user {0}: no matching entries in passwd file")]
    UnknownUser(String),
    /// `/etc/group` does not know the name.
    #[error("unable to find group {0}: no matching entries in group file")]
    UnknownGroup(String),
}

/// Resolves `user`, `user:group`, `uid`, `uid:gid` (empty: root) against unpacked layers, top first. As
/// Docker and containerd do, a known user brings its primary group (unless one is given) and every
/// group that lists it; an unknown number is taken as it is, with group 0.
pub fn resolve(layers: &[PathBuf], user: &str) -> Result<User, UserError> {
    let passwd = read(layers, "etc/passwd").unwrap_or_default();
    let group = read(layers, "etc/group").unwrap_or_default();
    resolve_in(&passwd, &group, user)
}

fn resolve_in(passwd: &str, group: &str, wanted: &str) -> Result<User, UserError> {
    let (user, group_wanted) = match wanted.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (wanted, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let number: Option<u32> = user.parse().ok();
    let entry = lines(passwd).find_map(|fields| {
        let uid: u32 = fields.get(2)?.parse().ok()?;
        let gid: u32 = fields.get(3)?.parse().ok()?;
        (fields[0] == user || Some(uid) == number).then(|| (fields[0].to_owned(), uid, gid))
    });
    let (name, uid, mut gid) = match (entry, number) {
        (Some((name, uid, gid)), _) => (Some(name), uid, gid),
        (None, Some(uid)) => (None, uid, 0),
        (None, None) => return Err(UserError::UnknownUser(user.to_owned())),
    };
    let mut groups = Vec::new();
    match group_wanted {
        Some(wanted) if !wanted.is_empty() => {
            let number: Option<u32> = wanted.parse().ok();
            gid = lines(group)
                .find_map(|fields| (fields[0] == wanted).then(|| fields.get(2)?.parse().ok()).flatten())
                .or(number)
                .ok_or_else(|| UserError::UnknownGroup(wanted.to_owned()))?;
        }
        _ => {
            if let Some(name) = name {
                groups = lines(group)
                    .filter(|fields| fields.get(3).is_some_and(|members| members.split(',').any(|m| m == name)))
                    .filter_map(|fields| fields.get(2)?.parse().ok())
                    .filter(|id| *id != gid)
                    .collect();
            }
        }
    }
    Ok(User { uid, gid, groups })
}

fn lines(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines().map(|line| line.trim_end_matches('\r').split(':').collect())
}

/// The topmost layer that has the file, or hides it, decides. A symlink resolves within its own layer,
/// never to the host.
fn read(layers: &[PathBuf], path: &str) -> Option<String> {
    const LIMIT: u64 = 4 << 20;
    for layer in layers {
        let Ok(root) = rustix::fs::open(layer, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        else {
            continue;
        };
        let opened = rustix::fs::openat2(
            &root,
            path,
            OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK,
            Mode::empty(),
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        );
        match opened {
            Ok(file) => {
                let file = File::from(file);
                if !file.metadata().ok()?.is_file() {
                    return None;
                }
                let mut bytes = Vec::new();
                file.take(LIMIT).read_to_end(&mut bytes).ok()?;
                return Some(String::from_utf8_lossy(&bytes).into_owned());
            }
            Err(_) => {
                // A whiteout (character device 0:0) hides the layers below.
                let hidden = std::fs::symlink_metadata(layer.join(path)).is_ok_and(|m| m.file_type().is_char_device());
                if hidden {
                    return None;
                }
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/var/www:/bin/false\nbroken:x\n7:x:1000:1000::/:\n";
    const GROUP: &str = "root:x:0:\nwww:x:34:\nlogs:x:50:root,web\nssl:x:60:web\n";

    #[test]
    fn names_numbers_and_both() {
        type Expected = Result<(u32, u32, &'static [u32]), UserError>;
        let table: &[(&str, Expected)] = &[
            ("", Ok((0, 0, &[50]))),
            ("web", Ok((33, 34, &[50, 60]))),
            ("33", Ok((33, 34, &[50, 60]))),
            ("web:logs", Ok((33, 50, &[]))),
            ("1234", Ok((1234, 0, &[]))),
            ("1234:5678", Ok((1234, 5678, &[]))),
            ("ghost", Err(UserError::UnknownUser("ghost".into()))),
            ("web:ghosts", Err(UserError::UnknownGroup("ghosts".into()))),
        ];
        for (wanted, expected) in table {
            let got = resolve_in(PASSWD, GROUP, wanted);
            let expected = expected.clone().map(|(uid, gid, groups)| User { uid, gid, groups: groups.to_vec() });
            assert_eq!(got, expected, "{wanted}");
        }
    }

    #[test]
    fn a_layer_whose_passwd_points_at_the_host_is_read_inside_itself() {
        let dir = tempfile::tempdir().unwrap();
        let (top, low) = (dir.path().join("top"), dir.path().join("low"));
        std::fs::create_dir_all(top.join("etc")).unwrap();
        std::fs::create_dir_all(low.join("etc")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd-elsewhere", top.join("etc/passwd")).unwrap();
        std::fs::write(top.join("etc/passwd-elsewhere"), "app:x:42:43::/:\n").unwrap();
        std::fs::write(low.join("etc/passwd"), PASSWD).unwrap();
        assert_eq!(resolve(&[top, low], "app").unwrap().uid, 42);
    }
}
