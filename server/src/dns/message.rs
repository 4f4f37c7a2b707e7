//! Bytes in, bytes out: reads a DNS message, says whether it needs a state, and writes the reply. Pure.
//!
//! Laws: total on any bytes; a reply fits the limit of its transport and of the client's EDNS, keeping as many answers
//! as fit and saying so (TC); it has an OPT record exactly if the request had one; nothing but a query with one question
//! is ever looked up; a response or a fragment of a header gets no reply at all.

use crate::dns::answer::{Answer, Query, answer};
use crate::dns::zone::Zone;
use crate::machine::State;
use hickory_proto::op::{Edns, Header, HeaderCounts, MessageType, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::{DNSClass, Record};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder, BinEncodable, BinEncoder};
use hickory_server::net::xfer::Protocol;
use hickory_server::server::Request;
use hickory_server::zone_handler::MessageResponseBuilder;
use std::net::{IpAddr, SocketAddr};

/// Largest UDP reply, bytes: what passes every path without fragments (DNS flag day 2020).
pub const LARGEST_UDP: u16 = 1232;
/// Largest UDP reply to a client without EDNS (RFC 1035 4.2.1).
const LARGEST_PLAIN_UDP: u16 = 512;
/// Option code of extended errors (RFC 8914).
const EXTENDED_ERROR: u16 = 15;
const STALE_ANSWER: u16 = 3;
const NOT_READY: u16 = 14;
const STALE_NXDOMAIN: u16 = 19;
const NO_REACHABLE_AUTHORITY: u16 = 22;

/// How a message came.
#[derive(Clone, Copy, Debug)]
pub struct Via {
    /// Who sent it.
    pub client: SocketAddr,
    /// UDP or TCP.
    pub protocol: Protocol,
    /// Address that it was sent to; `None` = unknown.
    pub server: Option<IpAddr>,
}

/// What to do with a message.
#[derive(Debug)]
pub enum Received {
    /// Nothing: not a request.
    Ignore,
    /// Send these bytes; no state is needed.
    Reply(Vec<u8>),
    /// Look it up and reply.
    Question(Box<Question>),
}

/// A question about our zone.
#[derive(Debug)]
pub struct Question {
    request: Request,
    query: Query,
}

/// What a question is answered from.
#[derive(Clone, Copy, Debug)]
pub enum View<'a> {
    /// A state no older than the question.
    Fresh(&'a State),
    /// A state that may be older: no quorum.
    Stale(&'a State),
    /// No state to answer from.
    Nothing(Lack),
}

/// Why there is no state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    /// No quorum, and the policy forbids older answers, or theirs are too old.
    NoQuorum,
    /// More questions than can be served.
    Overload,
}

/// Reads a message.
#[must_use]
pub fn receive(zone: &Zone, bytes: Vec<u8>, via: Via) -> Received {
    let Ok(header) = Header::read(&mut BinDecoder::new(&bytes)) else {
        return Received::Ignore;
    };
    let metadata = header.metadata;
    if metadata.message_type == MessageType::Response {
        return Received::Ignore;
    }
    if metadata.op_code != OpCode::Query {
        return Received::Reply(bare_reply(&metadata, ResponseCode::NotImp));
    }
    // Before decoding: the decoder makes room for as many questions as the header claims.
    if header.counts.queries != 1 {
        return Received::Reply(bare_reply(&metadata, ResponseCode::FormErr));
    }
    let Ok(request) = Request::from_bytes(bytes, via.client, via.protocol) else {
        return Received::Reply(bare_reply(&metadata, ResponseCode::FormErr));
    };
    let Some(asked) = request.queries.queries().first().map(|asked| asked.original().clone()) else {
        return Received::Reply(bare_reply(&metadata, ResponseCode::FormErr));
    };
    if request.version() > 0 {
        return Received::Reply(write(&request, &Answer::code(ResponseCode::BADVERS), None));
    }
    let ours = zone.place(asked.name()).is_some() && asked.query_class() == DNSClass::IN;
    if !ours {
        return Received::Reply(write(&request, &Answer::code(ResponseCode::Refused), None));
    }
    let query = Query {
        name: asked.name().clone(),
        kind: asked.query_type(),
        turn: usize::from(metadata.id),
        server: via.server,
    };
    Received::Question(Box::new(Question { request, query }))
}

/// Answers a question: the bytes to send, and their code.
#[must_use]
pub fn reply(zone: &Zone, question: &Question, view: View<'_>) -> (Vec<u8>, ResponseCode) {
    let (answer, error) = match view {
        // Without a cluster nothing is known not to exist.
        View::Fresh(state) | View::Stale(state) if state.settings().cluster_id.is_empty() => {
            (Answer::code(ResponseCode::ServFail), Some(NOT_READY))
        }
        View::Fresh(state) => (answer(zone, state, &question.query), None),
        View::Stale(state) => {
            let mut answer = answer(zone, state, &question.query);
            answer.forbid_caching();
            let stale = match answer.code {
                ResponseCode::NXDomain => STALE_NXDOMAIN,
                _ => STALE_ANSWER,
            };
            (answer, Some(stale))
        }
        View::Nothing(Lack::NoQuorum) => (Answer::code(ResponseCode::ServFail), Some(NO_REACHABLE_AUTHORITY)),
        View::Nothing(Lack::Overload) => (Answer::code(ResponseCode::ServFail), None),
    };
    (write(&question.request, &answer, error), answer.code)
}

/// A reply that has only a header: for what can't be understood.
fn bare_reply(request: &Metadata, code: ResponseCode) -> Vec<u8> {
    let mut metadata = Metadata::response_from_request(request);
    metadata.response_code = code;
    let header = Header { metadata, counts: HeaderCounts::default() };
    let mut bytes = Vec::with_capacity(12);
    // Twelve bytes into an unbounded vector: there is nothing to fail.
    let _ = header.emit(&mut BinEncoder::new(&mut bytes));
    bytes
}

/// Encodes a reply within the client's limits.
fn write(request: &Request, answer: &Answer, error: Option<u16>) -> Vec<u8> {
    let edns = request.edns.as_ref().map(|asked| reply_edns(asked, error));
    let limit = match (request.protocol(), &request.edns) {
        (Protocol::Udp, Some(asked)) => asked.max_payload().clamp(LARGEST_PLAIN_UDP, LARGEST_UDP),
        (Protocol::Udp, None) => LARGEST_PLAIN_UDP,
        _ => u16::MAX,
    };
    let mut metadata = Metadata::response_from_request(&request.metadata);
    metadata.response_code = answer.code;
    metadata.authoritative = matches!(answer.code, ResponseCode::NoError | ResponseCode::NXDomain);
    let mut parts = Parts { answers: &answer.answers, authority: &answer.authority, additionals: &answer.additionals };
    if parts.len() > 1 {
        // Measured without the OPT record, whose room is kept: it comes last and must not be what is cut.
        let room = limit.saturating_sub(edns.as_ref().map_or(0, encoded_len));
        let Some((_, fit)) = encode(request, &metadata, &parts, (None, room)) else {
            return bare_reply(&request.metadata, ResponseCode::ServFail);
        };
        // Glue that doesn't fit is no truncation (RFC 2181 9).
        metadata.truncation =
            usize::from(fit.answers) < parts.answers.len() || usize::from(fit.authorities) < parts.authority.len();
        parts = parts.first(fit);
    }
    match encode(request, &metadata, &parts, (edns.as_ref(), limit)) {
        Some((bytes, _)) => bytes,
        None => bare_reply(&request.metadata, ResponseCode::ServFail),
    }
}

#[derive(Clone, Copy)]
struct Parts<'a> {
    answers: &'a [Record],
    authority: &'a [Record],
    additionals: &'a [Record],
}

impl<'a> Parts<'a> {
    fn len(&self) -> usize {
        self.answers.len() + self.authority.len() + self.additionals.len()
    }

    fn first(self, fit: HeaderCounts) -> Self {
        let some = |records: &'a [Record], count: u16| &records[..usize::from(count).min(records.len())];
        Self {
            answers: some(self.answers, fit.answers),
            authority: some(self.authority, fit.authorities),
            additionals: some(self.additionals, fit.additionals),
        }
    }
}

/// Encodes what fits; `None` if not even the question does.
fn encode(
    request: &Request,
    metadata: &Metadata,
    parts: &Parts<'_>,
    (edns, limit): (Option<&Edns>, u16),
) -> Option<(Vec<u8>, HeaderCounts)> {
    let response = MessageResponseBuilder::new(&request.queries, edns);
    let response = response.build(*metadata, parts.answers, parts.authority, &[][..], parts.additionals);
    let mut bytes = Vec::with_capacity(512);
    let mut encoder = BinEncoder::new(&mut bytes);
    encoder.set_max_size(limit);
    let counts = response.destructive_emit(&mut encoder).ok()?.counts();
    Some((bytes, counts))
}

fn reply_edns(asked: &Edns, error: Option<u16>) -> Edns {
    let mut edns = Edns::new();
    edns.set_max_payload(LARGEST_UDP);
    edns.set_dnssec_ok(asked.flags().dnssec_ok); // copied (RFC 3225 3)
    if let Some(code) = error {
        let option = EdnsOption::Unknown(EXTENDED_ERROR, code.to_be_bytes().to_vec());
        edns.options_mut().insert(option);
    }
    edns
}

fn encoded_len(edns: &Edns) -> u16 {
    let mut bytes = Vec::new();
    let record = Record::from(edns);
    match record.emit(&mut BinEncoder::new(&mut bytes)) {
        Ok(()) => u16::try_from(bytes.len()).unwrap_or(u16::MAX),
        Err(_) => u16::MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::sample;
    use hickory_proto::op::{Message, Query as Asked};
    use hickory_proto::rr::{Name, RData, RecordType};
    use proptest::prelude::*;

    fn zone() -> Zone {
        Zone::new("cluster.local", 5).unwrap()
    }

    fn via(protocol: Protocol) -> Via {
        Via { client: "192.0.2.7:4242".parse().unwrap(), protocol, server: None }
    }

    fn request(name: &str, kind: RecordType) -> Message {
        let mut message = Message::query();
        message.metadata.id = 4711;
        message.metadata.recursion_desired = true;
        message.add_query(Asked::query(Name::from_ascii(name).unwrap(), kind));
        message
    }

    fn edns(mut message: Message, payload: u16) -> Message {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        edns.set_dnssec_ok(true);
        message.set_edns(edns);
        message
    }

    fn exchange_bytes(bytes: Vec<u8>, view: View<'_>, protocol: Protocol) -> Option<Vec<u8>> {
        match receive(&zone(), bytes, via(protocol)) {
            Received::Ignore => None,
            Received::Reply(bytes) => Some(bytes),
            Received::Question(question) => Some(reply(&zone(), &question, view).0),
        }
    }

    #[track_caller]
    fn exchange(message: &Message, view: View<'_>, protocol: Protocol) -> (Message, usize) {
        let bytes = exchange_bytes(message.to_vec().unwrap(), view, protocol).unwrap();
        (Message::from_vec(&bytes).unwrap(), bytes.len())
    }

    fn extended_error(message: &Message) -> Option<u16> {
        let edns = message.edns.as_ref()?;
        edns.options().options.iter().find_map(|(_, option)| match option {
            EdnsOption::Unknown(EXTENDED_ERROR, bytes) => Some(u16::from_be_bytes([bytes[0], bytes[1]])),
            _ => None,
        })
    }

    #[test]
    fn a_reply_repeats_the_question_and_says_who_speaks() {
        let asked = request("Web.SHOP.svc.Cluster.local.", RecordType::A);
        let (reply, _) = exchange(&asked, View::Fresh(&sample::state()), Protocol::Udp);
        assert_eq!(reply.metadata.id, 4711);
        assert_eq!(reply.metadata.message_type, MessageType::Response);
        assert!(reply.metadata.authoritative && reply.metadata.recursion_desired);
        assert!(!reply.metadata.recursion_available && !reply.metadata.truncation);
        assert!(reply.queries[0].name().eq_case(asked.queries[0].name()));
        assert_eq!(reply.answers[0].data, RData::A("10.96.0.10".parse().unwrap()));
        assert!(reply.edns.is_none());
    }

    #[test]
    fn what_is_no_question_of_ours() {
        let state = sample::state();
        let code = |message: &Message| exchange(message, View::Fresh(&state), Protocol::Udp).0.metadata.response_code;
        assert_eq!(code(&request("example.com.", RecordType::A)), ResponseCode::Refused);
        let mut chaos = request("web.shop.svc.cluster.local.", RecordType::TXT);
        chaos.queries[0].set_query_class(DNSClass::CH);
        assert_eq!(code(&chaos), ResponseCode::Refused);
        let mut update = request("cluster.local.", RecordType::SOA);
        update.metadata.op_code = OpCode::Update;
        assert_eq!(code(&update), ResponseCode::NotImp);
        let mut none = request("cluster.local.", RecordType::A);
        none.queries.clear();
        assert_eq!(code(&none), ResponseCode::FormErr);
        let mut two = request("cluster.local.", RecordType::A);
        two.add_query(two.queries[0].clone());
        assert_eq!(code(&two), ResponseCode::FormErr);
        let mut newer = edns(request("cluster.local.", RecordType::A), 1232);
        newer.edns.as_mut().unwrap().set_version(1);
        // BADVERS and BADSIG share a number.
        assert_eq!(u16::from(code(&newer)), u16::from(ResponseCode::BADVERS));
    }

    #[test]
    fn replies_to_nobody() {
        let state = sample::state();
        let mut response = request("web.shop.svc.cluster.local.", RecordType::A);
        response.metadata.message_type = MessageType::Response;
        for bytes in [vec![], vec![0; 11], response.to_vec().unwrap()] {
            assert_eq!(exchange_bytes(bytes, View::Fresh(&state), Protocol::Udp), None);
        }
        // A header that promises 65535 questions, and one that promises records which don't come.
        for counts in [[0xff, 0xff, 0, 0, 0, 0, 0, 0], [0, 1, 0xff, 0xff, 0, 0, 0xff, 0xff]] {
            let bytes = [&[0x12, 0x34, 1, 0][..], &counts].concat();
            let reply = exchange_bytes(bytes, View::Fresh(&state), Protocol::Udp).unwrap();
            assert_eq!((reply.len(), reply[0], reply[1], reply[3] & 0xf), (12, 0x12, 0x34, 1));
        }
    }

    #[test]
    fn a_reply_fits_and_says_what_it_left_out() {
        let state = sample::many(300);
        let view = View::Fresh(&state);
        let asked = request("many.shop.svc.cluster.local.", RecordType::A);
        let (plain, size) = exchange(&asked, view, Protocol::Udp);
        assert!(
            plain.metadata.truncation && size <= 512 && plain.answers.len() >= 25,
            "{size} {}",
            plain.answers.len()
        );
        for (payload, limit) in [(0, 512), (512, 512), (1000, 1000), (1232, 1232), (65535, 1232)] {
            let (reply, size) = exchange(&edns(asked.clone(), payload), view, Protocol::Udp);
            assert!(reply.metadata.truncation && size <= limit && size > limit - 32, "{payload}: {size}");
            assert!(reply.edns.as_ref().unwrap().flags().dnssec_ok);
            assert_eq!(reply.edns.unwrap().max_payload(), LARGEST_UDP);
        }
        let (whole, _) = exchange(&edns(asked, 1232), view, Protocol::Tcp);
        assert!(!whole.metadata.truncation);
        assert_eq!(whole.answers.len(), 300);
        // Glue that doesn't fit is left out without a word.
        let few = sample::many(4);
        let (srv, size) = exchange(
            &request("_http._tcp.many.shop.svc.cluster.local.", RecordType::SRV),
            View::Fresh(&few),
            Protocol::Udp,
        );
        assert_eq!((srv.answers.len(), srv.metadata.truncation), (4, false));
        assert!(size <= 512);
        // More than a TCP message holds.
        let most = sample::many(6000);
        let (reply, size) = exchange(
            &request("_http._tcp.many.shop.svc.cluster.local.", RecordType::SRV),
            View::Fresh(&most),
            Protocol::Tcp,
        );
        assert!(
            reply.metadata.truncation && size <= usize::from(u16::MAX) && reply.answers.len() > 600,
            "{size} {}",
            reply.answers.len()
        );
    }

    #[test]
    fn without_a_fresh_state() {
        let (state, nobody) = (sample::state(), State::default());
        let web = || edns(request("web.shop.svc.cluster.local.", RecordType::A), 1232);
        let none = || edns(request("none.shop.svc.cluster.local.", RecordType::A), 1232);
        let table = [
            (web(), View::Stale(&state), ResponseCode::NoError, Some(STALE_ANSWER)),
            (none(), View::Stale(&state), ResponseCode::NXDomain, Some(STALE_NXDOMAIN)),
            (none(), View::Fresh(&state), ResponseCode::NXDomain, None),
            (none(), View::Fresh(&nobody), ResponseCode::ServFail, Some(NOT_READY)),
            (none(), View::Stale(&nobody), ResponseCode::ServFail, Some(NOT_READY)),
            (web(), View::Nothing(Lack::NoQuorum), ResponseCode::ServFail, Some(NO_REACHABLE_AUTHORITY)),
            (web(), View::Nothing(Lack::Overload), ResponseCode::ServFail, None),
        ];
        for (asked, view, code, error) in table {
            let (reply, _) = exchange(&asked, view, Protocol::Udp);
            assert_eq!((reply.metadata.response_code, extended_error(&reply)), (code, error), "{view:?}");
            let stale = matches!(view, View::Stale(_));
            let records = reply.answers.iter().chain(&reply.authorities);
            assert!(records.into_iter().all(|record| (record.ttl == 0) == stale));
        }
        // A client without EDNS gets the same answer without the mark.
        let (reply, _) =
            exchange(&request("web.shop.svc.cluster.local.", RecordType::A), View::Stale(&state), Protocol::Udp);
        assert_eq!((reply.answers[0].ttl, reply.edns), (0, None));
    }

    proptest! {
        #[test]
        fn any_bytes_get_a_readable_reply_or_none(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let state = sample::state();
            if let Some(reply) = exchange_bytes(bytes.clone(), View::Fresh(&state), Protocol::Udp) {
                prop_assert_eq!(&reply[..2], &bytes[..2]);
                prop_assert!(reply[2] & 0x80 != 0 && reply.len() <= usize::from(LARGEST_UDP));
            }
        }

        #[test]
        fn a_damaged_question_gets_a_readable_reply_or_none(
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
            cut in any::<prop::sample::Index>(),
            with_edns in any::<bool>(),
            whole in any::<bool>(),
        ) {
            let message = request("_stats._tcp.db.shop.svc.cluster.local.", RecordType::SRV);
            let message = if with_edns { edns(message, 1232) } else { message };
            let mut bytes = message.to_vec().unwrap();
            for (at, byte) in damage {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            if !whole {
                bytes.truncate(cut.index(bytes.len()));
            }
            let state = sample::state();
            for protocol in [Protocol::Udp, Protocol::Tcp] {
                for view in [View::Fresh(&state), View::Stale(&state), View::Nothing(Lack::NoQuorum)] {
                    if let Some(reply) = exchange_bytes(bytes.clone(), view, protocol) {
                        prop_assert_eq!(&reply[..2], &bytes[..2]);
                    }
                }
            }
        }
    }
}
