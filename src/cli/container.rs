//! Whether the data directory goes with the container.
//!
//! A container is removed with every upgrade, and takes along what is not on a volume that outlives
//! it. The relay works perfectly until then, so it has to say so itself.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use super::banner::full_path;
use crate::config::Config;

/// Where a data directory is that a container takes along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// In the container's own file system.
    Container,
    /// On a volume that was made for this container and has no name to find it by again.
    NamelessVolume,
    /// On a volume of the pod.
    EmptyDir,
    /// In memory.
    Memory,
}

/// Whether what is kept goes with the container: `None` where nothing is kept, and where it is not
/// certain that this is a container. A warning that is wrong once is not read again.
pub(super) fn goes_along(config: &Config) -> Option<Result<(), Place>> {
    if !config.needs_data_dir() {
        return None;
    }
    let root = Path::new("/");
    // Only the first process of a container has this number; on a machine it is the init system.
    let is_first = std::process::id() == 1;
    let in_container = is_container(root, |name| std::env::var_os(name));
    if !may_lose(config, is_first, in_container) {
        return None;
    }
    let mounts = fs::read_to_string(root.join("proc/self/mountinfo")).ok()?;
    let folder = fs::canonicalize(&config.data_dir).ok()?;
    judged(&mounts, &folder)
}

/// What the mounts say of `folder`; nothing unless the root is one that goes with a container.
fn judged(mounts: &str, folder: &Path) -> Option<Result<(), Place>> {
    let root = mount_of(mounts, Path::new("/"))?;
    root.is_layer().then(|| match place(mounts, folder) {
        Some(place) => Err(place),
        None => Ok(()),
    })
}

/// Whether this process is in a container whose removal would surprise its operator.
///
/// In a development container somebody starts the relay in a checkout, and without any setting:
/// blobs are then in ./data, which a warning of its own names, and go with the checkout.
const fn may_lose(config: &Config, is_first: bool, in_container: bool) -> bool {
    is_first || (in_container && !config.data_dir_is_fallback)
}

/// The warning of a start.
pub(super) fn warning(config: &Config) -> Option<String> {
    let place = goes_along(config)?.err()?;
    Some(told(place, config))
}

/// What is wrong, and what to do.
pub(super) fn told(place: Place, config: &Config) -> String {
    let path = full_path(&config.data_dir);
    let held = config.data_dir_holds();
    let (what, instead) = match place {
        Place::Container => ("is not on a volume", "mount one"),
        Place::NamelessVolume => ("is on a volume without a name", "mount one with a name"),
        Place::EmptyDir => (
            "is on an emptyDir of the pod",
            "use a PersistentVolumeClaim",
        ),
        Place::Memory => ("is in memory (tmpfs)", "mount a volume"),
    };
    let example = match place {
        Place::EmptyDir => String::new(),
        _ => format!(", for example with: docker run -v relay-data:{path}"),
    };
    format!(
        "DATA WILL BE LOST: {path} {what}; removing this container (for example on upgrade) deletes {held}; {instead}{example}"
    )
}

/// By what Docker, Podman and Kubernetes leave in the ones that they start. A machine that was made
/// from an image has it as well.
fn is_container(root: &Path, variable: impl Fn(&str) -> Option<OsString>) -> bool {
    root.join(".dockerenv").exists()
        || root.join("run/.containerenv").exists()
        || variable("KUBERNETES_SERVICE_HOST").is_some()
}

/// Where `folder` is, when that goes with the container. `mounts` is /proc/self/mountinfo, see proc(5).
fn place(mounts: &str, folder: &Path) -> Option<Place> {
    let mount = mount_of(mounts, folder)?;
    if mount.point == "/" {
        return Some(Place::Container);
    }
    if matches!(mount.kind, "tmpfs" | "ramfs") {
        return Some(Place::Memory);
    }
    if mount.folder.contains("/kubernetes.io~empty-dir/") {
        return Some(Place::EmptyDir);
    }
    // Docker and Podman: …/volumes/HASH/_data. containerd, for a VOLUME of the image: …/volumes/HASH.
    let volume = mount.folder.strip_suffix("/_data").unwrap_or(mount.folder);
    let (parent, name) = volume.rsplit_once('/')?;
    (is_hash(name) && parent.ends_with("/volumes")).then_some(Place::NamelessVolume)
}

/// A line of /proc/self/mountinfo.
#[derive(Clone, Copy)]
struct Mount<'a> {
    /// Where it is mounted.
    point: &'a str,
    /// Which folder of its file system that is.
    folder: &'a str,
    /// The kind of file system.
    kind: &'a str,
    /// The file system's own name: a device, or a data set.
    device: &'a str,
}

impl<'a> Mount<'a> {
    fn of(line: &'a str) -> Option<Self> {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut words = mount.split(' ').skip(3);
        let (folder, point) = (words.next()?, words.next()?);
        let mut words = file_system.split(' ');
        let (kind, device) = (words.next()?, words.next()?);
        Some(Self {
            point,
            folder,
            kind,
            device,
        })
    }

    /// Whether it is a file system that Docker, Podman or containerd made for one container: layers
    /// over an image, or a copy of it that has a hash for its name (the drivers vfs, btrfs and zfs).
    /// The root of a machine is a disk or a partition.
    fn is_layer(&self) -> bool {
        matches!(self.kind, "overlay" | "aufs" | "fuse.fuse-overlayfs")
            || [self.folder, self.device]
                .iter()
                .any(|path| path.rsplit('/').next().is_some_and(is_hash))
    }
}

/// The mount that `folder` is on.
fn mount_of<'a>(mounts: &'a str, folder: &Path) -> Option<Mount<'a>> {
    // There, blanks are written as numbers.
    let folder = folder.to_string_lossy().replace(' ', "\\040");
    mounts
        .lines()
        .filter_map(Mount::of)
        .filter(|mount| Path::new(&folder).starts_with(mount.point))
        // Of equals the last one, which covers the others.
        .max_by_key(|mount| Path::new(mount.point).components().count())
}

fn is_hash(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: &str = "612 540 0:73 / / ro,relatime - overlay overlay rw,lowerdir=/a,upperdir=/b\n\
                        613 612 0:76 / /proc rw,nosuid - proc proc rw\n";
    const HASH: &str = "a3f1a3f1a3f1a3f1a3f1a3f1a3f1a3f1a3f1a3f1a3f1a3f1a3f1a3f1a3f1a3f1";

    fn place_of(folder: &str, mounted: &str) -> Option<Place> {
        place(&format!("{ROOT}{mounted}"), Path::new(folder))
    }

    /// `source` of a disk, mounted on /data.
    fn mounted(source: &str) -> String {
        format!("640 612 254:1 {source} /data rw,relatime master:1 - ext4 /dev/vda1 rw\n")
    }

    #[test]
    fn a_folder_in_the_container_goes_along() {
        assert_eq!(place_of("/data", ""), Some(Place::Container));
        // Another folder's volume, and one whose name only begins the same.
        let other = mounted("/srv/relay");
        assert_eq!(place_of("/elsewhere", &other), Some(Place::Container));
        assert_eq!(place_of("/database", &other), Some(Place::Container));
    }

    #[test]
    fn a_named_volume_and_a_folder_of_the_machine_stay() {
        for source in [
            "/var/lib/docker/volumes/relay-data/_data",
            "/volumes/relay-data/_data",
            "/srv/relay",
            &format!("/srv/{HASH}"),
            "/",
        ] {
            assert_eq!(place_of("/data", &mounted(source)), None, "{source}");
            assert_eq!(place_of("/data/relay", &mounted(source)), None, "{source}");
        }
        let blank = mounted("/srv/relay").replace("/data", "/my\\040data");
        assert_eq!(place_of("/my data", &blank), None);
    }

    #[test]
    fn a_volume_that_only_this_container_knows_goes_along() {
        for source in [
            format!("/var/lib/docker/volumes/{HASH}/_data"),
            format!("/volumes/{HASH}/_data"),
            format!("/var/lib/containerd/cri/containers/c1/volumes/{HASH}"),
        ] {
            let found = place_of("/data", &mounted(&source));
            assert_eq!(found, Some(Place::NamelessVolume), "{source}");
        }
        let pods = "/var/lib/kubelet/pods/5d0/volumes/kubernetes.io~empty-dir/data";
        assert_eq!(place_of("/data", &mounted(pods)), Some(Place::EmptyDir));
    }

    #[test]
    fn memory_goes_along_and_the_mount_on_top_counts() {
        let memory = "641 612 0:80 / /data rw - tmpfs tmpfs rw,size=65536k\n";
        let disk = mounted("/srv/relay");
        assert_eq!(place_of("/data", memory), Some(Place::Memory));
        assert_eq!(
            place_of("/data", &format!("{disk}{memory}")),
            Some(Place::Memory)
        );
        assert_eq!(place_of("/data", &format!("{memory}{disk}")), None);
    }

    /// Machines that were made from an image have its /.dockerenv, and a relay may be the first
    /// process of a virtual machine: both were told that their data goes with a container.
    #[test]
    fn a_machine_that_only_looks_like_a_container_is_not_warned_about() {
        for root in [
            "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard\n",
            "27 1 0:21 /@ / rw,relatime - btrfs /dev/nvme0n1p2 rw,subvol=/@\n",
            "27 1 0:24 / / rw,relatime - zfs rpool/ROOT/debian rw\n",
            "27 1 0:30 / / rw,relatime - virtiofs kataShared rw\n",
        ] {
            assert_eq!(judged(root, Path::new("/data")), None, "{root}");
            let memory = format!("{root}28 27 0:26 / /dev/shm rw - tmpfs tmpfs rw\n");
            assert_eq!(judged(&memory, Path::new("/dev/shm/data")), None, "{root}");
        }
        for root in [
            ROOT.to_owned(),
            format!("27 1 8:1 /var/lib/storage/vfs/dir/{HASH} / rw - ext4 /dev/sda1 rw\n"),
            format!("27 1 0:21 /docker/btrfs/subvolumes/{HASH} / rw - btrfs /dev/sda1 rw\n"),
            format!("27 1 0:24 / / rw - zfs tank/docker/{HASH} rw\n"),
            "27 1 0:30 / / rw - fuse.fuse-overlayfs fuse-overlayfs rw\n".to_owned(),
        ] {
            let found = judged(&root, Path::new("/data"));
            assert_eq!(found, Some(Err(Place::Container)), "{root}");
            let kept = format!("{root}{}", mounted("/srv/relay"));
            assert_eq!(judged(&kept, Path::new("/data")), Some(Ok(())), "{root}");
        }
    }

    #[test]
    fn a_container_is_known_by_what_its_maker_left() {
        let nothing = |_: &str| None;
        for file in [".dockerenv", "run/.containerenv"] {
            let root = tempfile::tempdir().unwrap();
            fs::create_dir(root.path().join("run")).unwrap();
            assert!(!is_container(root.path(), nothing));
            fs::write(root.path().join(file), "").unwrap();
            assert!(is_container(root.path(), nothing), "{file}");
        }
        let root = tempfile::tempdir().unwrap();
        let pod = |name: &str| (name == "KUBERNETES_SERVICE_HOST").then(|| "10.0.0.1".into());
        assert!(is_container(root.path(), pod));
    }

    /// `cargo run` in a development container was warned about the data of a service.
    #[test]
    fn a_checkout_in_a_development_container_is_not_warned_about() {
        let checkout = Config {
            data_dir_is_fallback: true,
            ..Config::default()
        };
        assert!(!may_lose(&checkout, false, true));
        // An image of somebody's own, without a /data and without the setting.
        assert!(may_lose(&checkout, true, true));
        let service = Config::default();
        assert!(may_lose(&service, false, true));
        assert!(may_lose(&service, true, false));
        assert!(!may_lose(&service, false, false));
    }

    #[test]
    fn the_warning_says_what_to_do() {
        let config = Config {
            data_dir: "/data".into(),
            ..Config::default()
        };
        let text = told(Place::NamelessVolume, &config);
        assert!(
            text.contains("/data is on a volume without a name"),
            "{text}"
        );
        assert!(text.ends_with("docker run -v relay-data:/data"), "{text}");
        let text = told(Place::EmptyDir, &config);
        assert!(text.ends_with("use a PersistentVolumeClaim"), "{text}");
    }
}
