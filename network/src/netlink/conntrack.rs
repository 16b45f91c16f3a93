//! Connection tracking: finding and forgetting flows.

use std::net::{Ipv4Addr, SocketAddrV4};

use nix::errno::Errno;
use nix::libc;

use super::message::{Attributes, Writer, flags};
use super::socket::{NetlinkError, Socket};

const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;

/// A tracked UDP flow: where its sender aims, and who really answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Flow {
    pub(crate) aimed_at: SocketAddrV4,
    pub(crate) answered_by: SocketAddrV4,
    original: Vec<u8>,
    id: Option<u32>,
}

#[cfg(test)]
impl Flow {
    pub(crate) fn new(aimed_at: SocketAddrV4, answered_by: SocketAddrV4) -> Flow {
        Flow { aimed_at, answered_by, original: vec![], id: None }
    }
}

impl Socket {
    /// Every tracked IPv4 UDP flow.
    pub(crate) fn udp_flows(&mut self) -> Result<Vec<Flow>, NetlinkError> {
        let mut writer = Writer::new();
        writer.begin(GET, flags::DUMP).raw(&[libc::AF_INET as u8, 0, 0, 0]);
        let mut flows = Vec::new();
        self.dump(&writer, |_, payload| flows.extend(read_flow(payload)))?;
        Ok(flows)
    }

    /// Forgets flows; those already gone are fine. Returns how many were there.
    pub(crate) fn forget_flows(&mut self, flows: &[Flow]) -> Result<usize, NetlinkError> {
        let mut forgotten = 0;
        for flow in flows {
            let mut writer = Writer::new();
            writer
                .begin(DELETE, flags::ACK)
                .raw(&[libc::AF_INET as u8, 0, 0, 0])
                .attr(CTA_TUPLE_ORIG | 1 << 15, &flow.original);
            if let Some(id) = flow.id {
                writer.be32(CTA_ID, id);
            }
            match self.request(&writer, |_| "forgetting a UDP flow".into()) {
                Ok(()) => forgotten += 1,
                Err(e) if e.errno() == Some(Errno::ENOENT) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(forgotten)
    }
}

fn read_flow(payload: &[u8]) -> Option<Flow> {
    let attributes = Attributes(payload.get(4..)?);
    let original = attributes.get(CTA_TUPLE_ORIG)?;
    let proto = Attributes(original).nested(CTA_TUPLE_PROTO);
    if proto.get(CTA_PROTO_NUM)?.first() != Some(&(libc::IPPROTO_UDP as u8)) {
        return None;
    }
    let reply = attributes.nested(CTA_TUPLE_REPLY);
    Some(Flow {
        aimed_at: end(Attributes(original), CTA_IP_V4_DST, CTA_PROTO_DST_PORT)?,
        answered_by: end(reply, CTA_IP_V4_SRC, CTA_PROTO_SRC_PORT)?,
        original: original.to_vec(),
        id: attributes.be32(CTA_ID),
    })
}

fn end(tuple: Attributes<'_>, address: u16, port: u16) -> Option<SocketAddrV4> {
    let ip = Ipv4Addr::from_bits(tuple.nested(CTA_TUPLE_IP).be32(address)?);
    Some(SocketAddrV4::new(ip, tuple.nested(CTA_TUPLE_PROTO).be16(port)?))
}
