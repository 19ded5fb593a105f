"""The vocabulary of the generated Python: words for names, strings and comments.

None of them is a keyword or a builtin, and none tells anything about the code around it: which
quote, bracket or keyword comes next has to be read from the syntax, never guessed from a word.
"""

NOUNS = """
account action address agent album amount anchor angle animal answer apple archive area argument
array arrow article artist asset author average badge balance band bank basket batch battery beam
bill bird block board body book border bottle bottom box branch brand bread bridge brush bucket
budget buffer bug building button cabin cable cache cake camera canvas car card cart cell center
chain chair channel chapter chart choice circle city clock cloud club code coin color column
comment company component contact content context contract copy corner cost count counter country
course cover credit crop cursor curve customer cycle dance date day deck degree delay delta
depth design desk detail device diagram digit dinner direction discount disk distance doctor
document dog door dream driver duration edge editor effect egg element email employee energy
engine entry error estimate event example expense factor family farm feature fee field figure
film finger fish flag flight floor flower folder font forest fork frame friend fruit game gap
garage garden gate gift glass goal grade graph grid group guest guide hall handle harbor header
health heart height hill history holiday horse host hotel hour house idea image index insect
island item job joke journey judge juice key kitchen label lake lamp language layer leader leaf
legend length lesson letter level library limit line link lion location lock loop lunch machine
mail manager margin mark market mask match matrix meal measure member memory menu message
metal meter method minute mirror mode model moment money month moon motor mountain mouse movie
music nation neighbor network node note notice number ocean offer office option orange order
origin owner packet page pair panel paper parent park part partner party path pattern payment
peak pencil people person phone photo phrase piano piece pilot pixel place plan planet plant
plate player pocket poem point policy pool port position post price printer prize problem
process product profile profit project queue quota quote rabbit radius rain rank rate ratio
reader reason record region remark rent reply request reserve rest reward river road robot role
roof room root route row rule salary sample scale scene school score screen sea season seat
second section segment seller sensor sentence series server service shape share sheet ship shop
side sign signal size sketch skill sky snake song sound space speed spoon staff stage stamp
star state station status step stock stone storm story stream street student style subject
summer supply surface symbol table tag target task taxi teacher team temperature term theme
ticket time title token tool topic total tower town toy track trade train tree trend trip truck
unit user valley value vector vehicle version video village visitor voice volume wall water
wave way week weight wheel width wind window winner winter word worker world writer year zone
""".split()  # noqa: SIM905  (a table of words reads better as text)

VERBS = """
accept add adjust allow apply arrange assign attach balance build calculate cancel capture change
check choose clean clear close collect combine compare compute confirm connect convert copy count
create decode define delete deliver describe detect divide draw drop edit emit encode estimate
evaluate expand expect explain export extend extract fetch fill find finish fix flush follow
gather generate get group handle hide ignore improve increase insert inspect join keep launch
load lock log look make mark measure merge modify move normalize notify observe order pack paint
parse pause perform pick place plan predict prepare process produce publish pull push query
reach read receive record reduce refresh register release remove rename repair replace report
request reset resize resolve restore retry review rotate run save scale scan schedule
score search select send shift show shuffle skip solve split start stop store submit sum_up swap
switch test track train transform trim update upload validate verify visit wait walk watch write
""".split()  # noqa: SIM905

ADJECTIVES = """
active actual all any base best big blue bright central cheap clean clever cold common complete
correct current daily dark deep default double early easy empty equal even exact extra fast final
first fixed flat free fresh full global good great green happy hidden high hot huge inner large
last late left light little local long loud low lower lucky main major max mean min minor missing
modern more narrow new next nice normal odd old outer pending plain previous primary private
proper public quick quiet random rare raw ready recent red remote rich right rough round safe
second short simple single slow small smooth soft spare special stable static strange
strict strong sweet tall temp thick thin tiny top total unique unknown upper useful valid
visible warm weak wet white whole wide wild wrong young
""".split()  # noqa: SIM905

FILLERS = """
a an the this that these those my your our their one two three four five no not and or but with
without for from to in on at by of over under after before until while is are was were will can
must should has have had be been now then here there again already also always never only still
very too just again soon later today please
""".split()  # noqa: SIM905

LETTERS = "a b c d e i j k m n p q r s t u v w x y z".split()  # noqa: SIM905

# Word sets shared by an accumulating set, string, list and number alike, so that only the
# initialiser says which of them a name is (the set_or_string tasks).
ACCUMULATORS = """
current result results output seen found total values items names words parts rest chunk buffer
collected visited text summary answer letters tokens known left pending line tags
""".split()  # noqa: SIM905

READ_STEMS = """
input source config settings template dataset original schema reader incoming request query
sample book story lesson
""".split()  # noqa: SIM905

WRITE_STEMS = """
output log result report summary backup export target copy_of dump answer outgoing reply trace
history invoice
""".split()  # noqa: SIM905

EXTENSIONS = ("txt", "txt", "csv", "json", "log", "dat", "md", "cfg")

MODULES = """
collections copy csv datetime functools glob itertools json logging math os pathlib random re
shutil string sys time
""".split()  # noqa: SIM905

IMPORTED_NAMES = (
    ("collections", "Counter"),
    ("collections", "defaultdict"),
    ("collections", "deque"),
    ("dataclasses", "dataclass"),
    ("datetime", "datetime"),
    ("functools", "partial"),
    ("itertools", "chain"),
    ("itertools", "product"),
    ("math", "sqrt"),
    ("pathlib", "Path"),
    ("random", "randint"),
    ("typing", "Any"),
)

EXCEPTIONS = ("ValueError", "KeyError", "TypeError", "IndexError", "RuntimeError", "OSError")
